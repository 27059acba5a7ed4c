"""The command of ``make mutants``, which ``run`` and ``sample`` describe."""

import argparse
import importlib.util
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from mutants import run, sample

# Packages without which a room has no tests, and which are installed for other targets than this.
NEEDED = {"onnx_export": ("onnx", "onnxruntime")}
WIDE = 120  # columns, of the table of a sample, which is cut in a file otherwise


def missing(part: str) -> list[str]:
    """The packages that a part's tests need and that are not installed."""
    return [name for name in NEEDED.get(part.partition(".")[0], ()) if importlib.util.find_spec(name) is None]


def all_parts() -> list[str]:
    """The chapter modules and the rooms, but for what cannot be tried here, of which it is said."""
    parts = [*run.TESTS, *run.ROOMS]
    for part in filter(missing, parts):
        print(f"{part} is left out: its tests need {', '.join(missing(part))}", flush=True)
    return [part for part in parts if not missing(part)]


def counted(text: str) -> int:
    """A number of mutants."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; ``parts`` are those to attack."""
    parser = argparse.ArgumentParser(prog="make mutants", description="The mutation score of parts of the package.")
    names = f"of {', '.join(run.TESTS)}, which are all if none is given; or one of the rooms {', '.join(run.ROOMS)}"
    parser.add_argument("modules", nargs="*", metavar="module", help=names)
    parser.add_argument("--anew", action="store_true", help="also what has not changed since the last run")
    some = parser.add_mutually_exclusive_group()
    every = "of all chapter modules and rooms if none is given"
    since = f"only the functions that are not as they were there; {every}"
    some.add_argument("--since", metavar="COMMIT", help=since)
    number = f"only so many mutants of each part, drawn at random; {every}"
    some.add_argument("--sample", metavar="N", type=counted, help=number)
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the sample: another one for each (0)")
    parser.add_argument("--workers", type=int, default=2, help="how many mutants to try at a time")
    options = parser.parse_args(arguments)
    try:
        for part in options.modules:
            run.modules_of(part)
            if needed := missing(part):
                raise ValueError(f"module: the tests of {part} need {', '.join(needed)}")
        if options.since:
            run.check_commit(options.since)
    except ValueError as error:
        parser.error(str(error))
    options.parts = options.modules or (all_parts() if options.since or options.sample else list(run.TESTS))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code is 1 unless the verdict passes."""
    options = parse(arguments)
    reasons = run.read_equivalents(run.EQUIVALENT.read_text(encoding="utf-8"))
    if options.sample:
        return estimate(options, reasons)
    modules = [module for part in options.parts for module in run.modules_of(part)]
    if options.since:
        changed = {module: names for module in modules if (names := run.changed_since(options.since, module))}
        modules = list(changed)
        listed = [change for change in reasons if change.function in changed.get(change.module, ())]
        tried = [mutant for module, names in changed.items() for mutant in run.attack(module, options.workers, names)]
        if not tried:
            print(f"mutants: none, as no function that can have any has changed since {options.since}")
            return 0
    else:
        listed = [change for change in reasons if change.module in modules]
        tried = [mutant for module in modules for mutant in run.outcome(module, options.workers, anew=options.anew)]
    verdict = run.judge(tried, {change: reasons[change] for change in listed})
    return told(verdict, run.account(verdict, reasons), run.table(verdict, modules))


def estimate(options: argparse.Namespace, reasons: dict[run.Change, str]) -> int:
    """Tries a sample of each part, and gives account of each when it is done."""
    samples = []
    for part in options.parts:
        found = sample.estimate(part, reasons, options.sample, options.seed, options.workers, anew=options.anew)
        samples.append(found)
        print("\n".join(run.account(found.verdict, reasons)), flush=True)
    return told(sample.together(samples), [], sample.table(samples))


def told(verdict: run.Verdict, account: Iterable[str], table: Table) -> int:
    """Prints the verdict and returns the exit code."""
    print("\n".join(account))
    Console(width=max(Console().width, WIDE)).print(table)
    print(verdict.last_line())
    return 0 if verdict.passes else 1


if __name__ == "__main__":
    raise SystemExit(main())
