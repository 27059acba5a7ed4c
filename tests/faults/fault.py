"""What a fault is, and where the faults are.

A fault is one mistake that somebody could make in one module (or, where no module can get a clause wrong, in a
chapter's definitions), written as a replacement in its source. It names the clauses that it violates: each of them must
have a test of its own that fails.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CHAPTERS = (
    "affine", "observers", "integer", "fusion", "static", "dynamic", "qat", "size", "accuracy", "dialects", "backends",
)  # fmt: skip
# Faults are in files by chapter, and those of the rooms that no chapter is about by room.
ROOMS = ("capture", "engines")
# Whoever computes codes is right or wrong in each of them, so these chapters are attacked twice.
TWICE = ("affine", "integer", "fusion")


class Stale(ValueError):
    """A fault whose ``old`` does not stand in its module exactly once."""


@dataclass(frozen=True)
class Fault:
    """One mistake.

    ``clauses``: the ids that must reject it, every one of them. ``why``: who makes it and what it does, in a sentence.
    ``module``: a module of ``impl/quantspec`` ("numerics.affine", "engines.reference"), or a chapter as
    "spec/09-accuracy.md"; ``old`` becomes ``new`` in it.
    """

    name: str
    module: str
    clauses: tuple[str, ...]
    why: str
    old: str
    new: str

    @property
    def is_text(self) -> bool:
        """Whether the fault is in a chapter's definitions."""
        return self.module.endswith(".md")

    @property
    def path(self) -> Path:
        """The file that the fault is in."""
        if self.is_text:
            return ROOT / self.module
        return ROOT / "impl" / "quantspec" / f"{self.module.replace('.', '/')}.py"

    def patched(self) -> str:
        """The source of its module with the fault in it. Raises Stale unless the module has one such place."""
        name = self.path.relative_to(ROOT)
        try:
            source = self.path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise Stale(f"fault {self.name}: there is no {name}") from error
        if (count := source.count(self.old)) != 1:
            expected = f"expected its old text once in {name}, found it {count} times"
            raise Stale(f"fault {self.name}: {expected}: {self.old!r}")
        return source.replace(self.old, self.new)


def load() -> list[Fault]:
    """All faults, chapter by chapter. Raises ValueError when two have one name."""
    modules = (importlib.import_module(f"faults.{stem}_faults") for stem in (*CHAPTERS, *ROOMS))
    faults = [fault for module in modules for fault in module.FAULTS]
    names = [fault.name for fault in faults]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two faults are named {twice[0]}")
    return faults


def chosen(faults: list[Fault], only: list[str]) -> list[Fault]:
    """The faults of these names, and those that these clauses must reject. Raises ValueError naming what is neither."""
    names = {fault.name for fault in faults} | {id_ for fault in faults for id_ in fault.clauses}
    if unknown := [name for name in only if name not in names]:
        raise ValueError(f"{unknown[0]} is neither the name of a fault nor a clause that a fault names")
    return [fault for fault in faults if fault.name in only or set(fault.clauses) & set(only)]


def too_few(faults: list[Fault], chapters: Mapping[str, str]) -> list[str]:
    """The clauses with fewer faults than demanded, each as a line that says what to do.

    ``chapters``: each clause's chapter, by id.
    """
    lines = []
    for id_, chapter in chapters.items():
        demanded, given = 2 if chapter in TWICE else 1, sum(id_ in fault.clauses for fault in faults)
        if given < demanded:
            what = "a fault" if demanded - given == 1 else f"{demanded - given} faults"
            lines.append(f"{id_} has {given} of {demanded} faults: add {what} that it must reject to tests/faults/")
    for fault in faults:
        unknown = [id_ for id_ in fault.clauses if id_ not in chapters]
        lines += [f"fault {fault.name} names {id_}, which no chapter has" for id_ in unknown]
    return lines
