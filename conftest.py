"""What every test gets: Hypothesis profiles, the data set, its clauses; and the chapters' examples as tests."""

import contextlib
import doctest
import io
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).parent
sys.path[:0] = [str(ROOT / "tests" / "harness"), str(ROOT / "tests")]  # helpers for test files in any folder

from quantspec import chapters  # noqa: E402

pytest_plugins = ["traceability", "verdict", "given_backend", "bounded", "counted", "copied"]

# Deadlines measure the machine, not the code.
settings.register_profile("dev", max_examples=20, deadline=None, print_blob=True)
settings.register_profile("ci", max_examples=60, deadline=None, derandomize=True, print_blob=True)
settings.register_profile("thorough", max_examples=1200, deadline=None, print_blob=True)
# For runs in which tests are meant to fail: the smallest example is of no interest there.
drawn_only = [Phase.explicit, Phase.generate]
settings.register_profile("faults", max_examples=60, deadline=None, derandomize=True, phases=drawn_only)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def is_chapter(path: Path) -> bool:
    """Whether a page is a chapter, ``spec/NN-stem.md``."""
    return path.parent.name == "spec" and path.stem[:2].isdigit()


def run_examples(example) -> None:
    """Runs one ``pycon`` block, a chapter's against the definitions of its chapter."""
    path = Path(example.path)
    names = dict(chapters.load(path.stem[3:]).__dict__) if is_chapter(path) else {}
    test = doctest.DocTestParser().get_doctest(example.parsed, names, path.name, path.name, example.line)
    out: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=out.append)
    assert not out, "".join(out)


def run_definitions(example) -> None:
    """Runs one ``python`` block, a chapter's as part of the module that loading the chapter runs.

    The blocks of another page are one program, and run in its order whichever of them is asked for; where a
    ``text`` block follows, it is what the block prints.
    """
    path = Path(example.path)
    if is_chapter(path):
        module = chapters.load(path.stem[3:])
        defined = [line.split("(")[0].split()[1] for line in example.parsed.splitlines() if line.startswith("def ")]
        missing = [name for name in defined if not hasattr(module, name)]
        assert not missing, f"{path.name}:{example.line}: loading the chapter did not define {', '.join(missing)}"
        return
    done = example.namespace.setdefault("__done__", {})  # what each block printed
    for block in example.document.examples():
        if block.region.evaluator is run_definitions and block.line <= example.line and block.line not in done:
            done[block.line] = run_block(block)
    shown = re.match(r"\s*```text\n(.*?)```", example.document.text[example.region.end :], re.DOTALL)
    expected = shown[1].strip("\n").splitlines() if shown else []
    out = done[example.line]
    assert [line.rstrip() for line in out.strip("\n").splitlines()] == expected, out


def run_block(example) -> str:
    """Runs one ``python`` block of a page that is no chapter, and returns what it prints."""
    names = example.namespace.setdefault("__page__", {"__name__": "__example__"})
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # an example may write files
        with contextlib.redirect_stdout(io.StringIO()) as out, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # which a reader sees, beside what is printed
            exec(compile(example.parsed, Path(example.path).name, "exec"), names)  # noqa: S102
    return out.getvalue()


pytest_collect_file = Sybil(
    parsers=[CodeBlockParser("pycon", run_examples), CodeBlockParser("python", run_definitions)],
    patterns=["[0-9][0-9]-*.md", "README.md", "your-backend.md", "guides/*.md"],
).pytest()


@pytest.fixture(scope="session")
def dataset():
    """MNIST where it is at hand ($QUANTSPEC_DATA, ./data), scikit-learn's digits otherwise. Tests never download."""
    from quantspec.tutorial import data

    return data.load(download=False)


@pytest.fixture(scope="session")
def model(dataset, tmp_path_factory):
    """The tutorial's network, trained on that data set."""
    from quantspec.tutorial import models

    cache = os.environ.get("QUANTSPEC_CACHE") or tmp_path_factory.mktemp("networks")
    return models.trained(dataset, cache=cache, progress=False)
