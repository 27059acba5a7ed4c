"""The mutation score of a part of the package, a room or a module, estimated by mutants that are drawn at random."""

import contextlib
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from mutants import run

UNTRIED = "not checked"
DEVIATES = 1.959963984540054  # of 95 % of a normal distribution, on both sides


def draw(names: Iterable[str], size: int, seed: int) -> list[str]:
    """So many of the names, each set of them as likely as any other.

    A larger sample by the same seed holds the smaller one, so that what was tried for that stands.
    """
    ordered = sorted(names)
    random.Random(seed).shuffle(ordered)
    return ordered[:size]


def interval(hits: int, tries: int) -> tuple[float, float]:
    """Wilson's interval of 95 %: the shares of the whole by which ``hits`` of ``tries`` is nothing unusual.

    That few mutants are left once these are drawn is not counted, which makes it a little wide for small parts.
    """
    if not tries:
        return 0.0, 1.0
    share, square = hits / tries, DEVIATES**2
    middle = share + square / (2 * tries)
    half = DEVIATES * math.sqrt(share * (1 - share) / tries + square / (4 * tries**2))
    low, high = ((middle + side) / (1 + square / tries) for side in (-half, half))
    # At the ends they are 0 and 1, but for what the sums are rounded by.
    return low if hits else 0.0, high if hits < tries else 1.0


@dataclass(frozen=True)
class Sample:
    """A part, how many mutants it has, and what became of those that were drawn."""

    part: str
    size: int
    verdict: run.Verdict

    @property
    def killed(self) -> int:
        """How many were killed, time-outs included."""
        return len(self.verdict.killed) + len(self.verdict.timed_out)

    @property
    def unlike(self) -> int:
        """How many are not known to compute the same as the code that they change."""
        return self.verdict.total - len(self.verdict.equivalent)

    def row(self) -> list[str]:
        """What the table shows of it."""
        low, high = interval(self.killed, self.unlike)
        share = percent(self.killed, self.unlike)
        return [self.part, str(self.size), *counts(self.verdict), percent(self.killed, self.verdict.total), share,
                f"{100 * low:.1f} to {100 * high:.1f} %"]  # fmt: skip


def counts(verdict: run.Verdict) -> list[str]:
    """How many mutants there are, and of each kind."""
    groups = verdict.killed, verdict.timed_out, verdict.equivalent, verdict.unexplained
    return [str(verdict.total), *(str(len(group)) for group in groups)]


def percent(part: float, whole: float) -> str:
    """A share as text."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def together(samples: Iterable[Sample]) -> run.Verdict:
    """The verdict on the mutants of all samples."""
    verdict = run.Verdict([], [], [], [], [])
    for sample in samples:
        for name, group in vars(verdict).items():
            group += getattr(sample.verdict, name)
    return verdict


def table(samples: Sequence[Sample]) -> Table:
    """What each sample shows of its part; the scores of all together are weighted by how many mutants each part has."""
    caption = "score: killed of all; not equivalent: killed of those, with Wilson's interval"
    shown = Table(title="mutants, a sample", title_justify="left", caption=caption, caption_justify="left")
    shown.add_column("part", no_wrap=True)
    counted = "mutants", "tried", "killed", "timed\nout", "equi-\nvalent", "unex-\nplained"
    for column in (*counted, "score", "not equi-\nvalent", "95 %"):
        shown.add_column(column, justify="right", no_wrap=True)
    for sample in samples:
        shown.add_row(*sample.row())
    weighed = [(each, each.size / each.verdict.total) for each in samples if each.verdict.total]
    killed = sum(weight * each.killed for each, weight in weighed)
    sizes = sum(each.size for each in samples)
    scores = percent(killed, sizes), percent(killed, sum(weight * each.unlike for each, weight in weighed))
    shown.add_row("all", str(sizes), *counts(together(samples)), *scores, "")
    return shown


def estimate(part: str, reasons: dict[run.Change, str], size: int, seed: int, workers: int, *, anew: bool) -> Sample:
    """Tries a sample of a part. Entries are not judged: that no mutant was drawn for one shows nothing."""
    every, tried = attack(part, size, seed, workers, anew=anew)
    return Sample(part, every, replace(run.judge(tried, reasons), stale=[]))


def attack(part: str, size: int, seed: int, workers: int, *, anew: bool) -> tuple[int, list[run.Mutant]]:
    """How many mutants a part has, and what became of those drawn.

    Its folder keeps what was tried for another sample, or until a run was cut off, unless something has changed since
    or ``anew``. The tests run once for mutmut's statistics, as they are.
    """
    folder, modules = run.WORK / "samples" / part, run.modules_of(part)
    stamp, now = folder / "state", run.state(part)
    if anew or not stamp.exists() or stamp.read_text(encoding="utf-8") != now:
        run.prepare(folder, part)
        print(f"{part}: mutating, and running its tests once ...", flush=True)
        run.run_mutmut(folder, workers, [run.NO_MUTANT])
        stamp.write_text(now, encoding="utf-8")
    every = run.results(folder, modules)
    drawn = set(draw([mutant.name for mutant in every], size, seed))
    left = [mutant.name for mutant in every if mutant.name in drawn and mutant.status == UNTRIED]
    print(f"{part}: {len(drawn)} of {len(every)} mutants drawn, {len(left)} of them not tried before", flush=True)
    if left:
        run.run_mutmut(folder, workers, left, watch=progress(folder, modules, left))
    tried = [mutant for mutant in run.results(folder, modules) if mutant.name in drawn]
    return len(every), run.with_changes(folder, tried)


def progress(folder: Path, modules: Sequence[str], names: Sequence[str]) -> Callable[[], None]:
    """What prints, each time that it is called, how many of these mutants were tried, if more than before."""
    told = 0

    def tell() -> None:
        nonlocal told
        codes: dict[str, int | None] = {}
        for module in modules:
            with contextlib.suppress(json.JSONDecodeError):  # while it is written; the next time tells
                codes |= json.loads(run.kept_of(folder, module))["exit_code_by_key"]
        done = sum(codes.get(name) is not None for name in names)
        if done > told:
            told = done
            print(f"{folder.name}: {done} of {len(names)} tried", flush=True)

    return tell
