"""A call that a backend is asked to answer, as plain data."""

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, eq=False)
class Call:
    """One call: ``getattr(backend, operation)(*arguments, **options)``."""

    operation: str
    arguments: tuple
    options: dict[str, Any] = field(default_factory=dict)

    def with_arguments(self, *arguments, **options) -> "Call":
        """The same operation with other arguments; options that are given replace those of the same name."""
        return replace(self, arguments=arguments, options={**self.options, **options})
