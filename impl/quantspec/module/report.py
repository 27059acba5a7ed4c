"""Where the multiply-accumulates of a network are computed (SIZ-REPORT): ``q.report``."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .printed import NAME, at_dots, grouped, new_table, printed

INT8, FLOAT, PYTHON = "int8", "float", "Python"
PLACES = (INT8, FLOAT, PYTHON)
EXCLUDED = "excluded"
NAMED = 3  # how many modules a warning names


@dataclass(frozen=True)
class Work:
    """The multiply-accumulates of one layer, or of Python in one module. ``path``: the module's; ``place``: ``int8``,
    ``float`` for what a network computes in float, or ``Python`` for what is computed between networks; ``reason``: why
    they are not in int8."""

    path: str
    macs: int
    place: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The work of a network. ``rows`` in the order of the network; ``counted``: whether it was counted on a batch;
    otherwise each layer counts for a single row or position of its input, as no sizes are known."""

    rows: tuple[Work, ...]
    counted: bool

    @property
    def macs(self) -> int:
        """All multiply-accumulates."""
        return sum(row.macs for row in self.rows)

    @property
    def int8_macs(self) -> int:
        """Those in int8."""
        return sum(row.macs for row in self.rows if row.place == INT8)

    @property
    def excluded_macs(self) -> int:
        """Those of modules that the caller excluded."""
        return sum(row.macs for row in self.rows if row.reason == EXCLUDED)

    @property
    def share(self) -> float:
        """The share in int8 of what was not excluded; 1 where there is nothing to compute."""
        wanted = self.macs - self.excluded_macs
        return self.int8_macs / wanted if wanted else 1.0

    @property
    def rest(self) -> list[Work]:
        """What is not in int8, though nobody excluded it, the largest first."""
        others = (row for row in self.rows if row.place != INT8 and row.reason != EXCLUDED)
        return sorted(others, key=lambda row: -row.macs)

    def as_tuples(self) -> tuple[tuple[tuple[str, int, str, str], ...], bool]:
        """The same as a file holds it."""
        return tuple((row.path, row.macs, row.place, row.reason) for row in self.rows), self.counted

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)

    def sentence(self) -> str:
        """One sentence on the share in int8, and where the rest is."""
        wanted, rest = self.macs - self.excluded_macs, self.rest
        if not rest:
            return "all multiply-accumulates that are not excluded are in int8"
        named = [f"{row.path or 'the model'} ({percent(row.macs, wanted)}, {row.place}: {row.reason})" for row in rest]
        if len(named) > NAMED:
            others = sum(row.macs for row in rest[NAMED:])
            named[NAMED:] = [f"{len(rest) - NAMED} others ({percent(others, wanted)})"]
        counted = "" if self.counted else ", counted for one row of each layer's input"
        return (
            f"{100 * self.int8_macs // wanted} % of the multiply-accumulates are in int8{counted}; the rest:"
            f" {'; '.join(named)}"
        )

    def __str__(self) -> str:
        excluded = self.excluded_macs
        title = f"{self.share:.1%} of {self.macs - excluded:,} multiply-accumulates in int8"
        title += f"; {excluded:,} more are excluded" if excluded else ""
        table = new_table(title, "module", "computed in", "MACs", left=2)
        for row in self.rows:
            table.add_row(at_dots(row.path or "the model", NAME + 16), row.place, f"{row.macs:,}")
        reasons = [(row.path or "the model", row.reason) for row in self.rows if row.reason]
        return "\n".join([printed(table), *grouped("not in int8:", reasons)])


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "0 %"


def report(rows: Iterable[Work], *, counted: bool) -> Report:
    """The report of these rows; those of the same module, place and reason become one."""
    sums: dict[tuple[str, str, str], int] = {}
    for row in rows:
        if row.macs:
            key = row.path, row.place, row.reason
            sums[key] = sums.get(key, 0) + row.macs
    return Report(tuple(Work(path, macs, place, why) for (path, place, why), macs in sums.items()), counted)
