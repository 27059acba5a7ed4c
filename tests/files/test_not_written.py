"""What has no place in a file is named, and so are numbers and packages that are none."""

import collections
import importlib
import sys

import numpy as np
import pytest
import torch
from torch import nn

import quantspec as qs
from quantspec import chapters, errors, extras, torchvision_compat
from quantspec.capture.tracer import capture
from quantspec.errors import UnsupportedError
from quantspec.storage import callables, file
from quantspec.storage.json_fields import Writer


class Counting(nn.Module):
    """A module whose state is more than tensors."""

    def get_extra_state(self):
        return {"count": 3}


Answer = collections.namedtuple("Answer", "logits")


def test_what_is_called_is_written_by_a_name_that_means_it():
    cases = {
        "function nowhere.Answer: its class cannot be imported by name": ("function", "nowhere.Answer", Answer),
        "function torch.relu is not the one that the file would name": ("function", "torch.relu", torch.sigmoid),
        "module 'part': its state '_extra_state' is not a tensor": ("module", "part", Counting()),
    }
    for message, (kind, target, value) in cases.items():
        with pytest.raises(UnsupportedError, match=message):
            callables.write_callables({(kind, target): value}, Writer())


def test_a_module_that_cannot_be_compared_with_a_new_one_is_the_models_own():
    dropout = nn.Dropout(0.5)
    assert callables.plain_arguments(dropout) is not None
    dropout.p = np.array([0.5, 0.5])
    assert callables.plain_arguments(dropout) is None


def test_fields_have_the_types_that_the_format_has():
    with pytest.raises(UnsupportedError, match="steps.0.name: expected str, got 3"):
        Writer().field(3, str, "steps.0.name")
    with pytest.raises(UnsupportedError, match="args: builtins.object cannot be stored in a file"):
        Writer().tree(object(), "args")


def test_what_is_no_step_is_left_for_the_checks():
    assert file.renamed_step(5) == 5 and file.renamed_step({"step": 5}) == {"step": 5}


def test_a_number_that_no_float_holds_is_refused():
    with pytest.raises(ValueError, match="threshold: expected a number that a float holds, got 1"):
        errors.real_number(10**400, "threshold")


def test_a_package_that_lacks_another_raises_that_packages_error(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import nowhere_at_all\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        extras.needed("half_installed", "onnx", "a test")

    def lacking(name):
        raise ModuleNotFoundError("No module named 'PIL'", name="PIL")

    monkeypatch.setattr(importlib, "import_module", lacking)
    with pytest.raises(ModuleNotFoundError, match="PIL"):
        torchvision_compat.import_torchvision()
    assert "half_installed" not in sys.modules


def test_chapters_that_are_not_there_or_share_an_id_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "stems", lambda: ["affine", "affine"])
    with pytest.raises(ValueError, match="clause AFF-.* is defined in affine and in affine"):
        chapters.clauses.__wrapped__() if hasattr(chapters.clauses, "__wrapped__") else chapters.clauses()
    monkeypatch.setattr(chapters, "__file__", str(tmp_path / "quantspec" / "chapters.py"))
    with pytest.raises(FileNotFoundError, match="the chapters were found neither in .* nor in"):
        chapters.directory()


class Scores(nn.Module):
    """Products around a softmax that are no attention of values alone."""

    def __init__(self, written):
        super().__init__()
        self.layer, self.written = nn.Linear(8, 8), written
        self.table = nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        y = self.layer(x)
        return self.written(y, self.table)


WRITTEN = {
    "a number is added": lambda y, table: torch.softmax(y @ y.transpose(-2, -1) + 1.5, -1) @ y,
    "a constant is multiplied": lambda y, table: torch.softmax(y @ y.transpose(-2, -1), -1) @ table,
    "hidden by a number that is seen": lambda y, table: torch.softmax(
        (y @ y.transpose(-2, -1)).masked_fill(torch.eye(5) > 0, -1.0), -1
    ) @ y,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.* of the multiply-accumulates are in int8")
@pytest.mark.parametrize("name", WRITTEN)
def test_products_around_a_softmax_that_are_no_attention_stay_as_they_are(name):
    torch.default_generator.manual_seed(1)
    model, x = Scores(WRITTEN[name]).eval().requires_grad_(False), torch.randn(2, 5, 8)
    q = qs.quantize(model, [x])
    assert not any(type(step).__name__ == "Attention" for step in q.program.steps)
    assert (q(x) - model(x)).abs().max() < 0.1 * model(x).abs().max()


def test_a_prepared_model_has_the_dialect_that_it_will_be_converted_to_and_refuses_infinity():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(4, 8)
    prepared = qs.prepare(model, dialect="fbgemm")
    prepared(x)
    assert prepared.dialect.name == "fbgemm" and capture(model).inputs
    fresh = qs.prepare(model)
    with pytest.raises(qs.CalibrationError, match="expected finite values"):
        fresh(torch.full((2, 8), torch.inf))
