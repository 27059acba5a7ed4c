"""Files that earlier versions wrote, with names that are others today, give the same bits.

``version_1/`` has files with every kind of step, and ``values.npz``: for each file an input ``x``, the output ``y`` of
engine ``reference`` and that of the engine that runs it by default, ``compiled``; and under ``probe`` what functions of
float32 gave on the machine that wrote them. ``version_2/`` has some of these networks. The outputs of
``weights_alone`` are newer: the order of its sums was prescribed by nobody then (DYN-WEIGHT-ONLY).
"""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

import quantspec
from evidence import clause
from quantspec.ir.program import Call, LinearDynamic, Recurrent
from quantspec.storage import allowed
from quantspec.storage import file as storage_file

FOLDER = Path(__file__).parent / "version_1"
FILES = sorted(FOLDER.glob("*.safetensors"))
FILES_2 = sorted((FOLDER.parent / "version_2").glob("*.safetensors"))
VALUES = np.load(FOLDER / "values.npz")
FLOAT_STEPS = (Call, LinearDynamic, Recurrent)


def probe(x: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """What steps in float are made of, whose last bits depend on the CPU. ``x`` [5, 16], ``weight`` [12, 16]."""
    query, key = (t.reshape(1, 5, 2, 8).transpose(1, 2) for t in (x, x.flip(0)))
    return {
        "softmax": torch.softmax(x, -1), "tanh": torch.tanh(x), "sigmoid": torch.sigmoid(x), "gelu": F.gelu(x),
        "linear": F.linear(x, weight), "matmul": x @ weight.T, "layer_norm": F.layer_norm(x, (16,)),
        "attention": F.scaled_dot_product_attention(query, key, x.expand(1, 2, 5, 16)), "sum": x.sum(-1),
    }  # fmt: skip


def floats_are_those_of_the_writer() -> bool:
    found = probe(torch.from_numpy(VALUES["probe.x"]), torch.from_numpy(VALUES["probe.weight"]))
    return all(np.array_equal(value.numpy(), VALUES[f"probe.{name}"]) for name, value in found.items())


def contents(path: Path):
    """The JSON of a file and its tensors, without our reader."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["quantspec"])
    return header, safetensors.torch.load(data)


@clause("STA-STORED")
@pytest.mark.parametrize("path", [*FILES, *FILES_2], ids=lambda path: f"{path.parent.stem}, {path.stem}")
def test_a_file_of_an_earlier_version_gives_the_same_bits(path):
    q = quantspec.load(path)
    assert contents(path)[0]["version"] == int(path.parent.stem[-1]) and q.report is None
    x = torch.from_numpy(VALUES[f"{path.stem}.x"])
    in_float = any(isinstance(step, FLOAT_STEPS) for step in q.program.steps)
    if in_float and not floats_are_those_of_the_writer():
        pytest.skip("float32 functions have other last bits here than on the machine that wrote the file")
    assert np.array_equal(q.run_on("reference")(x).detach().numpy(), VALUES[f"{path.stem}.y"])
    assert np.array_equal(q(x).detach().numpy(), VALUES[f"{path.stem}.compiled"])


def test_one_file_of_integers_alone_is_compared_on_every_machine():
    steps = quantspec.load(FOLDER / "joins.safetensors").program.steps
    assert len(steps) > 10 and not any(isinstance(step, FLOAT_STEPS) for step in steps)


@clause("STA-STORED")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_array_of_a_file_of_version_1_is_that_of_the_program(path):
    header, tensors = contents(path)
    network, program = header["network"], quantspec.load(path).program
    compared = set()

    def same(name: str, array) -> None:
        array = array.detach().numpy() if isinstance(array, torch.Tensor) else array
        assert array.dtype == tensors[name].numpy().dtype and np.array_equal(array, tensors[name].numpy()), name
        compared.add(name)

    def fields(row: dict, step) -> None:
        for field, value in row.items():
            if field.endswith("qparams"):
                grids = value if isinstance(value, list) else [value]
                given = getattr(step, field)
                for index, grid in zip(grids, given if isinstance(value, list) else [given], strict=True):
                    on_grid(network["grids"][index], grid)
            elif field == "cells":
                for cell, made in zip(value, step.cells, strict=True):
                    fields(cell, made)
            elif field != "step" and isinstance(getattr(step, field), np.ndarray):
                same(value, getattr(step, field))

    def on_grid(row: dict, grid) -> None:
        assert (grid.qmin, grid.qmax, grid.axis) == (row["qmin"], row["qmax"], row["axis"])
        for value, array in ((row["scale"], grid.scale), (row["zero_point"], grid.zero_point)):
            if isinstance(value, str):
                same(value, array)
            else:
                assert array.item() == value

    assert header["version"] == 1 and len(network["steps"]) == len(program.steps)
    for row, step in zip(network["steps"], program.steps):
        assert allowed.RENAMED_STEPS.get(row["step"], row["step"]) == type(step).__name__ and row["name"] == step.name
        fields(row, step)
    for row, (key, what) in zip(network["callables"], program.callables.items(), strict=True):
        assert key == (row["kind"], allowed.RENAMED_FUNCTIONS.get(row["target"], row["target"]))
        if row["kind"] == "module":
            state = what.state_dict()
            for name, tensor in row["state"].items():
                same(tensor, state[name])
        elif row["kind"] == "attribute" and isinstance(what, torch.Tensor):
            same(row["value"]["tensor"], what)
    assert compared == set(tensors)


def test_every_old_name_is_in_a_file():
    rows = [row for path in FILES for key in ("steps", "callables") for row in contents(path)[0]["network"][key]]
    named = {row.get(key) for row in rows for key in ("step", "target")}
    assert set(allowed.RENAMED_STEPS) <= named
    # The others are functions of torch.nn.MultiheadAttention whose layers are int8, and are called no more then.
    assert "quantspec.attention.attend" in named


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_saved_again_has_todays_names(path, tmp_path):
    q = quantspec.load(path)
    q.save(tmp_path / "q.safetensors")
    header, tensors = contents(tmp_path / "q.safetensors")
    assert header["version"] == storage_file.VERSION == 3 and set(tensors) == set(contents(path)[1])
    rows = [*header["network"]["steps"], *header["network"]["callables"]]
    named = {row.get(key) for row in rows for key in ("step", "target")}
    assert not named & {*allowed.RENAMED_STEPS, *allowed.RENAMED_FUNCTIONS}
    x = torch.from_numpy(VALUES[f"{path.stem}.x"])
    assert torch.equal(quantspec.load(tmp_path / "q.safetensors")(x), q(x))


@pytest.mark.parametrize("name", sorted(allowed.RENAMED_FUNCTIONS.items()))
def test_an_old_name_of_a_function_is_one_of_today(name):
    old, today = name
    assert callable(allowed.function(today))
    with pytest.raises(ValueError, match="may not name"):
        allowed.function(old)
