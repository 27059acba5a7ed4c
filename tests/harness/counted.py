"""``make coverage``: what runs in workers' processes is counted too.

Coverage writes what ran in a process when that ends by itself. A worker's process is ended by a signal right after
its pipes are closed; here it first gets the time to notice that they are.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

SECONDS = 10.0  # for a process that hangs, and is ended by the signal then


def pytest_configure() -> None:
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        from quantspec.backends import worker  # not in every other run

        worker.end = asked_first(worker.end)


def asked_first(end: Callable[..., None]) -> Callable[..., None]:
    """``worker.end``, behind the wait."""

    def ask(process: subprocess.Popen[bytes], stdin: IO[bytes], *others: Any) -> None:
        stdin.close()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and any(alive(process.pid)):
            process.poll()
            time.sleep(0.005)
        end(process, stdin, *others)

    return ask


def alive(group: int) -> Iterator[int]:
    """The processes of a group that run yet."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
        except OSError:  # it ended meanwhile
            continue
        if int(its) == group and state not in "ZX":
            yield int(stat.parent.name)
