"""A pytest plugin: what a failure says.

After pytest's own account stand the clauses the test checks, the numbers it had in hand, and lines that fail in the
same way when pasted into a shell in the project's folder. Where codes are compared (``assert got == allowed``), what
came out and what was allowed stand below each other, with the first place where they differ.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from quantspec import chapters
from quantspec.numerics.affine import QParams

BLOB = re.compile(r"@reproduce_failure\((.+?)\) as a decorator")
SHOWN = 12


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Adds the clauses, the numbers and the lines to the report of a test that failed."""
    report = yield
    if report.when == "call" and report.failed:
        properties, clauses = dict(report.user_properties), chapters.clauses()
        ids = properties.get("clauses") or [id_ for id_ in [clause_of_block(item)] if id_]
        if ids:
            sentences = [f"{id_}: {clauses[id_].sentence}" if id_ in clauses else id_ for id_ in ids]
            report.sections.append(("clauses", "\n".join(sentences)))
        if call.excinfo and (numbers := numbers_at(item, call.excinfo)):
            report.sections.append(("the numbers at the failure", numbers))
        report.sections.append(("reproduce", snippet(item, call.excinfo.value if call.excinfo else None)))
    return report


def numbers_at(item, excinfo) -> str:
    """The numbers and arrays that the test's own variables held where it failed.

    Loops run from small to large, so these are the first that fail.
    """
    frames = [entry for entry in excinfo.traceback if Path(entry.path) == item.path]
    lines = []
    for name, value in frames[-1].frame.f_locals.items() if frames else ():
        if name.startswith("@"):  # what pytest's rewritten asserts keep
            continue
        if isinstance(value, (int, float, np.generic, QParams)) and not isinstance(value, bool):
            digits = f" ({float(value).hex()})" if isinstance(value, (float, np.floating)) else ""
            lines.append(f"{name} = {value!r}{digits}")
        elif is_numbers(value):
            lines.append(f"{name} = {row(np.asarray(value).ravel())}")
    return "\n".join(lines)


def clause_of_block(item) -> str:
    """The clause that an example or a definition of a chapter stands under, empty for other tests."""
    example = getattr(item, "example", None)
    files = {chapters.chapter(stem).path.name for stem in chapters.stems()}
    if example is None or Path(example.path).name not in files:
        return ""
    blocks = chapters.chapter(Path(example.path).stem[3:]).blocks
    return next((block.clause for block in blocks if block.line == example.line + 1), "")


def snippet(item, error: BaseException | None) -> str:
    """What to paste into a shell to see the failure again.

    The smallest input alone where Hypothesis drew it, the test otherwise.
    """
    notes = "\n".join(notes_of(error))
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    simple = all(isinstance(value, (str, int, float, bool, type(None))) for value in parameters.values())
    blob = BLOB.search(notes)
    if blob is None or not simple or set(getattr(item, "fixturenames", ())) - set(parameters):
        return f"python -m pytest -n 0 {shlex.quote(item.nodeid)}"
    folder, module, name = item.path.parent.relative_to(item.config.rootpath), item.path.stem, item.originalname
    arguments = ", ".join(f"{key}={value!r}" for key, value in parameters.items())
    return "\n".join([
        "python - <<'END'",
        "import sys",
        f"sys.path[:0] = {sorted({'tests/harness', str(folder)})}",
        "from hypothesis import reproduce_failure",
        f"import {module}",
        f"reproduce_failure({blob[1]})({module}.{name})({arguments})",
        "END",
    ])


def notes_of(error: BaseException | None) -> list[str]:
    """What Hypothesis noted on an error, or on the errors of a group."""
    group = getattr(error, "exceptions", ())
    return [*getattr(error, "__notes__", []), *(note for member in group for note in notes_of(member))]


def pytest_assertrepr_compare(op, left, right):
    """What came out beside what was allowed, for ``==`` between sequences of numbers."""
    if op != "==" or not (is_numbers(left) and is_numbers(right)):
        return None
    got, allowed = np.asarray(left), np.asarray(right)
    if got.shape != allowed.shape:
        shapes = f"{got.shape} values where {allowed.shape} were allowed"
        return [shapes, f"got:     {row(got.ravel())}", f"allowed: {row(allowed.ravel())}"]
    got, allowed = got.ravel(), allowed.ravel()
    places = np.nonzero(got != allowed)[0]
    if not len(places):  # NaN, or numbers of other types
        return None
    start = max(0, int(places[0]) - SHOWN // 2)
    window = slice(start, start + SHOWN)
    return [
        f"{len(places)} of {got.size} differ, the first at {places[0]}",
        f"got:     {row(got[window])}",
        f"allowed: {row(allowed[window])}",
    ]


def is_numbers(value) -> bool:
    """Whether a value is a sequence of numbers of one shape."""
    if not isinstance(value, (list, tuple, np.ndarray)):
        return False
    try:
        return np.asarray(value).dtype.kind in "iuf" and np.ndim(value) > 0
    except (ValueError, TypeError, RuntimeError):  # sequences of different lengths, or tensors with a gradient
        return False


def row(values: np.ndarray) -> str:
    """Numbers in one line: integers as they are, floats in hexadecimal too, so that no digit is lost."""
    cells = [f"{v:g} ({float(v).hex()})" if values.dtype.kind == "f" else str(v) for v in values[:SHOWN]]
    return ", ".join(cells) + (", ..." if len(values) > SHOWN else "")
