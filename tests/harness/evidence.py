"""``@clause`` says which clauses a test checks; ``note`` records what a running test enumerates.

How strong the evidence for a clause is follows from what its tests did, not from what they claim: enumerations note
themselves (``strategies.every_code`` and its like), and drawn examples are counted while they run.
"""

from collections.abc import Callable

import pytest

_noted: set[str] = set()


def clause(*ids: str) -> Callable:
    """Marks a test as checking clauses, by id."""
    return pytest.mark.clause(*ids)


def note(what: str) -> None:
    """Records that the running test goes through all of ``what``: "codes" or "zero points"."""
    _noted.add(what)


def take_notes() -> set[str]:
    """What has been noted since the last call, which is then forgotten."""
    noted = set(_noted)
    _noted.clear()
    return noted


def strength(noted: set[str], examples: int) -> str:
    """The evidence in words: exhaustive over codes (and zero points), sampled n, or example only."""
    words = []
    if "codes" in noted:
        words.append("exhaustive over codes and zero points" if "zero points" in noted else "exhaustive over codes")
    if examples:
        words.append(f"sampled {examples}")
    return ", ".join(words) or "example only"
