"""torchvision beside a CPU-only torch: what is declared, and when."""

from types import ModuleType, SimpleNamespace

import pytest
import torch

from quantspec import torchvision_compat

MISSING = "operator torchvision::nms does not exist"


@pytest.fixture
def imports(monkeypatch):
    """import_torchvision() with imports that end as told; gives what is declared and the modules at hand."""

    def prepare(*outcomes):
        left, modules, declared = list(outcomes), {}, []

        def import_module(name):
            assert name == "torchvision"
            assert "torchvision" not in modules and "torchvision.half" not in modules
            modules.update({n: ModuleType(n) for n in ("torchvision", "torchvision.half", "torchvisionary")})
            if isinstance(outcome := left.pop(0), Exception):
                raise outcome
            return outcome

        library = SimpleNamespace(define=declared.append)
        monkeypatch.setattr(torchvision_compat, "importlib", SimpleNamespace(import_module=import_module))
        monkeypatch.setattr(torchvision_compat, "sys", SimpleNamespace(modules=modules))
        monkeypatch.setattr(torchvision_compat, "_declared", [])
        monkeypatch.setattr(torch.library, "Library", lambda *arguments: declared.append(arguments) or library)
        return left, declared, modules

    return prepare


def test_missing_operators_are_declared_and_torchvision_is_imported_afresh(imports):
    left, declared, modules = imports(RuntimeError(MISSING), "the module")
    assert torchvision_compat.import_torchvision() == "the module"
    signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    assert declared == [("torchvision", "DEF"), f"nms{signature}", f"qnms{signature}"]
    assert len(torchvision_compat._declared) == 1
    assert left == [] and "torchvisionary" in modules


def test_operators_are_declared_once_even_when_the_import_fails_again(imports):
    _, declared, modules = imports(RuntimeError(MISSING), RuntimeError("again"), RuntimeError(MISSING), "the module")
    with pytest.raises(RuntimeError, match="again"):
        torchvision_compat.import_torchvision()
    modules.clear()
    assert torchvision_compat.import_torchvision() == "the module"
    assert len(declared) == 3


@pytest.mark.parametrize(
    "error", [RuntimeError(f"{MISSING} and more"), ImportError("No module named 'torchvision'"), ValueError(MISSING)]
)
def test_any_other_failure_declares_nothing(error, imports):
    left, declared, _ = imports(error, "the module")
    with pytest.raises(type(error)) as raised:
        torchvision_compat.import_torchvision()
    assert raised.value is error and declared == [] and left == ["the module"]


def test_torchvision_imports_beside_this_torch():
    assert torchvision_compat.import_torchvision().__name__ == "torchvision"
    assert torchvision_compat.import_torchvision() is torchvision_compat.import_torchvision()
