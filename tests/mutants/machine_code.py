"""Machine code under mutants: what a mutant writes is compiled anew, and nobody else gets it.

``quantspec.kernels.jit`` keeps machine code in a process, and between processes under its name and the source of the
package, in which all mutants of a function stand. Taken from there, a mutant's kernel would be found by the mutants
after it, and that of none by all of them, so that a mutant of what writes kernels would never run. Which functions had
a part in a kernel is noted when it is compiled for mutmut's statistics. There, each test that asks for the kernel
counts as one that called them. A mutant begins without kernels: of those that it has a part in, and of those that
nobody had before, it compiles its own and stores none.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGE = "quantspec."
MUTANT = "MUTANT_UNDER_TEST"  # where mutmut has the name of the mutant, or of what else it does
STATISTICS = "stats"


def written_in(module: str, code: CodeType) -> str:
    """mutmut's name of the function or method of a module that code stands in: the outermost one."""
    outermost = code.co_qualname.partition(".<locals>")[0].rpartition(".")[2]
    return f"{module}.{outermost.partition('__mutmut_')[0]}"


@contextmanager
def called(functions: set[str]) -> Iterator[None]:
    """Adds the functions of the package that are called meanwhile, those around a closure for it."""

    def note(frame: FrameType, event: str, _: object) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith(PACKAGE):
            functions.add(written_in(module, frame.f_code))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)


class Compiling:
    """What comes between a machine and its code. ``hits()``: the set of functions that mutmut notes for the test that
    runs; ``path``: where the parts of functions are kept for the processes after this one."""

    def __init__(self, path: Path, hits: Callable[[], set[str]]) -> None:
        self.path, self.hits = path, hits
        self.parts: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.begun: str | None = None
        self.asked = threading.local()

    def put_in(self, machine: type) -> None:
        """Makes all machines of a class take their code so."""
        function_address, code, compiled = machine.function_address, machine.code, machine.compiled
        machine.function_address = lambda own, *of: self.address(own, function_address, *of)
        machine.code = lambda own, *of: self.code(own, code, *of)
        machine.compiled = lambda own, *of: self.compiled(own, compiled, *of)

    def address(self, own: Any, function_address: Callable[..., int], name: str, *of: object) -> int:
        """Where a kernel is. The first that a mutant asks for finds a machine without any."""
        mutant = os.environ.get(MUTANT, "")
        if "__mutmut_" in mutant and self.begun != mutant:
            self.begun = mutant
            own.__init__()
        self.asked.kernel = f"{name} {own.emitter.__name__}"
        found = function_address(own, name, *of)
        if mutant == STATISTICS:
            self.hits().update(self.parts.get(self.asked.kernel, []))
        return found

    def code(self, own: Any, code: Callable[..., bytes], *of: object) -> bytes:
        """The code of a kernel: as it is stored, unless a mutant has a part in it."""
        function, _, number = os.environ.get(MUTANT, "").partition("__mutmut_")
        anew = number and function in self.parts.get(self.asked.kernel, [function])
        return own.compiled(*of) if anew else code(own, *of)

    def compiled(self, own: Any, compiled: Callable[..., bytes], *of: object) -> bytes:
        """The code of a kernel, compiled; of which functions it is, is noted for mutmut's statistics."""
        if os.environ.get(MUTANT) != STATISTICS:
            return compiled(own, *of)
        functions: set[str] = set()
        with called(functions):
            made = compiled(own, *of)
        self.parts[self.asked.kernel] = sorted(functions)
        self.path.write_text(json.dumps(self.parts), encoding="utf-8")
        return made
