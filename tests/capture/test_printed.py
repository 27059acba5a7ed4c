"""What is printed of a network: it fits a terminal, names what a reader can find, and says each reason once."""

import re

import pytest
import torch
from torch import nn

import networks
import quantspec as qs
from quantspec.module.printed import NAME, at_dots

WIDTH = 79


class Block(nn.Module):
    """Two layers, a sum, and a function without an integer form."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return torch.relu(self.second(torch.erf(self.first(x))) + x)


class Deep(nn.Module):
    """Blocks whose paths are long, one of them called twice, around a head."""

    def __init__(self, branch=False):
        super().__init__()
        self.body = nn.ModuleDict({"encoder_of_images": nn.ModuleList([Block(), Block()])})
        self.pool, self.head, self.branch = nn.AvgPool2d(2), nn.Linear(4 * 4 * 4, 1000), branch

    def forward(self, x):
        if self.branch and x.sum() > 1e9:
            x = x + 1
        one, two = self.body["encoder_of_images"]
        return self.head(self.pool(two(one(one(x)))).flatten(1))


@pytest.fixture(scope="module")
def texts():
    """What is printed, by what it is of."""
    model, x = networks.seeded(Deep), networks.inputs(2, (4, 8, 8))
    branched = networks.seeded(lambda: Deep(branch=True))
    q, parts = qs.quantize(model, [x]), qs.quantize(branched, [x])
    return {
        "network": str(q), "report": str(q.report), "comparison": str(qs.compare(model, q, [x])),
        "parts": str(parts), "report of parts": str(parts.report), "comparison of parts":
        str(qs.compare(branched, parts, [x])), "unfused": str(qs.quantize(model, [x], fuse=False)),
        "targets": str(qs.compare(model, q, [(x, torch.tensor([1, 2]))])),
        "parted": str(qs.compare(model, q, [x], threshold=100)),
    }  # fmt: skip


def test_a_terminal_is_wide_enough(texts):
    for name, text in texts.items():
        lines = [line for line in text.splitlines() if __file__ not in line]
        assert max(map(len, lines)) <= WIDTH and "…" not in text, name


def test_a_title_is_as_wide_as_the_terminal(texts):
    assert re.match("[0-9.]+% of [0-9,]+ multiply-accumulates in int8\n\n", texts["report"])


def test_a_report_counts_what_was_excluded_apart():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    report = qs.quantize(model, [torch.rand(1, 4)], exclude="2").report
    assert str(report).startswith("100.0% of 16 multiply-accumulates in int8; 8 more are excluded\n")


def test_values_are_named_by_their_modules(texts):
    assert re.search(r"body\.encoder_of_images\. .*\n +0\.add\n", texts["network"])
    model, x = networks.seeded(Deep), networks.inputs(2, (4, 8, 8))
    names = [step.name for step in qs.quantize(model, [x]).program.steps]
    for name in ("0.first", "0.first_1", "0.add.codes", "0.add_1.codes", "1.add.codes"):
        assert f"body.encoder_of_images.{name}" in names
    assert len(set(names)) == len(names)


def test_a_reason_is_said_once_with_all_its_places(texts):
    assert texts["network"].count("torch.erf has no integer form here (3 times):") == 1
    assert texts["parts"].count("reads values of a tensor") == 1


def test_every_step_has_a_row(texts):
    assert all(kind in texts["unfused"] for kind in ("average pool", "relu", "conv 3x3", "linear", "quantize"))


def test_the_wide_table_has_the_grids_of_weights():
    q = qs.quantize(networks.seeded(Deep), [networks.inputs(2, (4, 8, 8))])
    head = next(line for line in q.table(wide=True).splitlines() if line.startswith(" head"))
    scale = next(layer for layer in q.program.layers if layer.layer == "head").w_qparams.scale
    assert f"{scale.min():.6g} .. {scale.max():.6g}" in head and "weight scale" not in q.table()


@pytest.mark.parametrize("path", ["a", "a.b", "layer1.0.downsample.0", "x" * 40, f"{'x' * 20}.{'y' * 20}.z"])
def test_paths_are_broken_behind_dots(path):
    lines = at_dots(path).splitlines()
    assert "".join(line.removeprefix("  ") for line in lines) == path
    assert all(len(line) <= NAME or "." not in line.strip().rstrip(".") for line in lines)
