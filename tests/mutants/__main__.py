"""The command of ``make mutants``, which ``run`` and ``sample`` describe."""

import argparse
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from mutants import run, sample

WIDE = 120  # columns, of the table of a sample, which is cut in a file otherwise


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
    otherwise = "of all chapter modules and rooms if none is given"
    since = f"only the functions that are not as they were there; {otherwise}"
    some.add_argument("--since", metavar="COMMIT", help=since)
    number = f"only so many mutants of each part, drawn at random; {otherwise}"
    some.add_argument("--sample", metavar="N", type=counted, help=number)
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the sample: another one for each (0)")
    parser.add_argument("--workers", type=int, default=2, help="how many mutants to try at a time")
    options = parser.parse_args(arguments)
    try:
        for part in options.modules:
            run.modules_of(part)
        if options.since:
            run.check_commit(options.since)
    except ValueError as error:
        parser.error(str(error))
    every = [*run.TESTS, *(run.ROOMS if options.since or options.sample else ())]
    options.parts = options.modules or every
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
