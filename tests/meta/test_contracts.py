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


def broken(package: Path, contract: str) -> str:
    """What the linter says of the copy that breaks one contract; empty when it keeps it."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache", "--contract", contract]
    linter = subprocess.run(command, cwd=package.parent, capture_output=True, encoding="utf-8")
    assert linter.returncode in (0, 1), linter.stderr
    report = linter.stdout + linter.stderr
    return report if linter.returncode else ""


# The file, the line that is added to it, the contract, and what the contract has to name.
PLANTED = [
    ("numerics/affine.py", "from quantspec.ir import program", "rooms", "numerics.affine -> quantspec.ir.program"),
    ("ir/program.py", "from quantspec.ptq.static import quantize", "rooms", "ir.program -> quantspec.ptq.static"),
    ("storage/callables.py", "import quantspec.module.size", "rooms", "storage.callables -> quantspec.module.size"),
    ("capture/layers.py", "import quantspec.engines.autotune", "rooms", "capture.layers -> quantspec.engines.autotune"),
    ("conformance/checks.py", "import quantspec.ir.program", "rooms", "conformance.checks -> quantspec.ir.program"),
    ("annex/__init__.py", "import numpy", "rooms", "quantspec.annex"),
    ("ptq/static.py", "import quantspec.backends.registry", "networks", "ptq.static -> quantspec.backends.registry"),
    ("kernels/gemm.py", "import torch", "kernels", "kernels.gemm -> torch"),
    ("comparison.py", "import onnxruntime", "peers", "quantspec.comparison"),
    ("ptq/options.py", "from . import static", "circles", "quantspec.ptq"),
    ("engines/reference.py", "from quantspec.engines import AUTO", "fronts", "engines.reference -> quantspec.engines"),
]


@pytest.mark.parametrize("name, line, contract, arrow", PLANTED, ids=[f"{name}: {line}" for name, line, *_ in PLANTED])
def test_a_planted_import_is_refused_and_named(name, line, contract, arrow, package):
    path = package / name
    before = path.read_text(encoding="utf-8") if path.exists() else None
    assert arrow not in broken(package, contract)
    path.parent.mkdir(exist_ok=True)
    try:
        path.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
        assert arrow in broken(package, contract)
    finally:
        if before is None:
            shutil.rmtree(path.parent)
        else:
            path.write_text(before, encoding="utf-8")
