"""Counts, for a backend and an operation, the outputs that none of its declared dialects gives. As a program it prints the table of all that is installed.

    PYTHONPATH=tests python -m conformance.measure [backend ...]
"""

import sys
from dataclasses import dataclass, field

import numpy as np

from conformance.cases import cases
from conformance.known import KNOWN
from quantspec.backends import protocol, registry
from quantspec.backends.ours import Ours
from quantspec.backends.worker import Worker, described, outcome


@dataclass
class Count:
    """Outputs compared and outputs that differ; the first call that differed in words, where, and what came of calls that gave no value."""

    outputs: int = 0
    differ: int = 0
    example: str = ""
    others: dict[str, tuple[int, str]] = field(default_factory=dict)

    def __str__(self) -> str:
        others = "".join(f"; {kind} {n} ({why[:90]})" for kind, (n, why) in self.others.items() if kind != "not offered")
        return f"{self.differ}/{self.outputs}{others}" if self.outputs else "; ".join(f"{kind}: {why[:60]}" for kind, (_, why) in self.others.items())


def measure(backend, operation: str, *, count: int = 60, seed: int = 0) -> Count:
    """Compares every output of the cases with the dialects that the backend declares for the operation."""
    models = [Ours(name) for name in sorted(protocol.dialects(backend, operation))]
    result = Count()
    for signed in (False, True):
        for arguments, options in cases(operation, signed, count=count, seed=seed):
            got = outcome(backend, operation, *arguments, **options)
            if got.kind != "value":
                times, why = result.others.get(got.kind, (0, got.message))
                result.others[got.kind] = times + 1, why
                continue
            allowed = [getattr(model, operation)(*arguments, **options) for model in models]
            theirs, ours = flat(got.value), [flat(value) for value in allowed]
            result.outputs += theirs.size
            if any(o.shape != theirs.shape or o.dtype != theirs.dtype for o in ours):
                result.differ += theirs.size
                result.example = result.example or f"{described(operation, arguments, options)}: {theirs.dtype}{theirs.shape} instead of {ours[0].dtype}{ours[0].shape}"
                continue
            wrong = np.flatnonzero(~np.logical_or.reduce([o == theirs for o in ours]))
            result.differ += len(wrong)
            if len(wrong) and not result.example:
                at = wrong[0]
                result.example = f"{described(operation, arguments, options)}: output {at} of {theirs.size} is {theirs[at]}, allowed {sorted({o[at] for o in ours})}"
    return result


def flat(value) -> np.ndarray:
    """All numbers of a result, one after the other."""
    parts = value if isinstance(value, tuple) else (value,)
    return np.concatenate([np.ravel(part) for part in parts])


def main(names: list[str]) -> int:
    """Prints a line for every cell; 1 when a cell differs that is not known to, or agrees that is known not to."""
    surprises = 0
    for name in names or registry.ENTRIES:
        if name.startswith("quantspec-") and not names:
            continue
        if reason := registry.why_not_installed(name):
            print(f"{name}: {reason}")
            continue
        with Worker(name) as worker:
            for operation in worker.operations:
                count = measure(worker, operation)
                print(f"{name:32} {operation:20} {count}", flush=True)
                if count.example:
                    print(f"    {count.example}", flush=True)
                known = (name, operation) in KNOWN
                if count.outputs and known != bool(count.differ):
                    surprises += 1
                    print("    NOT KNOWN" if count.differ else "    UNEXPECTED PASS", flush=True)
    print(f"{surprises} surprises")
    return int(surprises > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
