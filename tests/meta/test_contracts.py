"""The contracts between the rooms (``make lint``) refuse what they are there to refuse.

Each is tried on a copy of the package with one import too many.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A copy of the package, beside its contracts."""
    folder = tmp_path_factory.mktemp("contracts")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "impl/quantspec", folder / "quantspec", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "quantspec"


def complaints(package: Path) -> str:
    """What the linter says of a copy that breaks contracts; empty when it keeps all of them."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    linter = subprocess.run(command, cwd=package.parent, capture_output=True, encoding="utf-8")
    assert linter.returncode in (0, 1), linter.stderr
    return linter.stdout if linter.returncode else ""


# The file, the line that is added to it, the name of the contract, and what the linter has to point at.
DOWN = "Imports between rooms go down only"
PLANTED = [
    ("numerics/affine.py", "from quantspec.ir import program", DOWN, "numerics.affine -> quantspec.ir.program"),
    ("ir/program.py", "from quantspec.ptq.static import quantize", DOWN, "ir.program -> quantspec.ptq.static"),
    ("storage/callables.py", "import quantspec.module.size", DOWN, "storage.callables -> quantspec.module.size"),
    ("capture/layers.py", "import quantspec.engines.autotune", DOWN, "capture.layers -> quantspec.engines.autotune"),
    ("conformance/checks.py", "import quantspec.ir.program", DOWN, "conformance.checks -> quantspec.ir.program"),
    ("annex/__init__.py", "import numpy", DOWN, "quantspec.annex"),
    (
        "ptq/static.py",
        "import quantspec.backends.registry",
        "Whatever quantizes a network knows no backend",
        "ptq.static -> quantspec.backends.registry",
    ),
    (
        "storage/file.py",
        "import matplotlib",
        "Whatever quantizes a network needs no extra",
        "storage.file -> matplotlib",
    ),
    ("kernels/gemm.py", "import torch", "Kernels know bytes, addresses and numbers", "kernels.gemm -> torch"),
    (
        "comparison/compare.py",
        "import onnxruntime",
        "Only backends touch other people's kernels",
        "comparison.compare -> onnxruntime",
    ),
    ("ptq/options.py", "from . import static", "No circles, neither between rooms nor inside one", "quantspec.ptq"),
    ("ptq/__init__.py", "from . import static", "A room's front imports nothing", "ptq -> quantspec.ptq.static"),
]


def test_the_package_keeps_its_contracts(package):
    assert complaints(package) == ""


@pytest.mark.parametrize("name, line, contract, arrow", PLANTED, ids=[f"{name}: {line}" for name, line, *_ in PLANTED])
def test_a_planted_import_is_refused_and_named(name, line, contract, arrow, package):
    path = package / name
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    try:
        path.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
        report = complaints(package)
    finally:
        if before is None:
            shutil.rmtree(path.parent)
        else:
            path.write_text(before, encoding="utf-8")
    assert f"{contract} BROKEN" in report and arrow in report
