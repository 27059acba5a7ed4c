"""Memory that machine code may touch: what stands behind an input, and what the process' defaults make of outputs."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import quantspec as qs
from evidence import clause
from networks import default_dtype
from quantspec.engines import tensors
from quantspec.engines.compiled import planner
from quantspec.errors import UnsupportedError
from quantspec.kernels import memory

INPUTS = 12


@pytest.fixture(scope="module")
def nets():
    """Networks of each kind of step that reads floats, each with its batch."""
    torch.default_generator.manual_seed(1)
    mlp = nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    conv = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2)).eval()
    lstm, rows, images = nn.LSTM(INPUTS, 5, batch_first=True).eval(), torch.randn(6, INPUTS), torch.randn(3, 2, 8, 8)
    return {
        "static": (qs.quantize(mlp, [rows]), rows),
        "images": (qs.quantize(conv, [images]), images),
        "dynamic": (qs.quantize_dynamic(mlp), rows),
        "by rows": (qs.quantize_dynamic(mlp, activations="per_token"), rows),
        "weights": (qs.quantize_dynamic(mlp, activations=None), rows),
        "recurrent": (qs.quantize_dynamic(lstm), torch.randn(2, 5, INPUTS)),
        "reference": (qs.quantize(mlp, [rows], engine="reference"), rows),
        "torch": (qs.quantize(mlp, [rows], engine="torch"), rows),
    }


KINDS = "static", "images", "dynamic", "by rows", "weights", "recurrent", "reference", "torch"


def first(output):
    return output[0] if isinstance(output, tuple) else output


DEFAULTS = {
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "meta": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
}


@clause("STA-DEFAULTS")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("default", DEFAULTS)
def test_defaults_of_the_process_change_nothing(nets, kind, default):
    q, x = nets[kind]
    expected = first(q(x))
    fresh = q.run_on(q.engine)  # which has bound no shapes yet
    with DEFAULTS[default]():
        outputs = [first(network(x)) for network in (q, q, fresh, fresh)]
    for output in outputs:
        assert output.dtype == torch.float32 and output.device.type == "cpu" and torch.equal(output, expected)


def taken_away(x):
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


def shortened(x):
    x = x.clone()
    x.untyped_storage().resize_(x.nbytes - 4)
    return x


def shortened_part(x):
    whole = torch.cat([x, x])
    part = whole[len(x) :]
    whole.untyped_storage().resize_(x.nbytes)
    return part


REFUSED = {
    "taken away": (taken_away, ValueError, "of its storage, which has 0 bytes"),
    "shortened": (shortened, ValueError, "of its storage, which has"),
    "a part of what was shortened": (shortened_part, ValueError, "of its storage, which has"),
    "of another device": (lambda x: x.to("meta"), TypeError, "a dense tensor on the CPU, got one that is on meta"),
    "sparse": (lambda x: x.to_sparse(), TypeError, "expected a dense tensor on the CPU"),
    "a list": (lambda x: x.tolist(), TypeError, "expected a dense tensor on the CPU, got list"),
    "an array": (lambda x: x.numpy(), TypeError, "expected a dense tensor on the CPU, got ndarray"),
    "complex": (lambda x: torch.complex(x, x).conj(), TypeError, "expected float32 values, got complex64"),
}  # fmt: skip


@clause("STA-MEMORY")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", REFUSED)
def test_what_has_no_values_of_its_own_is_refused_by_name(nets, kind, change):
    q, x = nets[kind]
    q(x), q(x)  # shapes are bound
    make, error, message = REFUSED[change]
    with pytest.raises(error, match=message):
        q(make(x))
    with pytest.raises(error, match=message):
        q.run_on(q.engine)(make(x))


@clause("STA-MEMORY")
@pytest.mark.parametrize("kind", KINDS)
def test_zeros_without_memory_are_zeros(nets, kind):
    q, x = nets[kind]
    for network in (q, q.run_on(q.engine)):
        expected = first(network(torch.zeros(x.shape)))
        assert torch.equal(first(network(torch._efficientzerotensor(x.shape))), expected)


@clause("STA-MEMORY")
@pytest.mark.parametrize("kind", KINDS)
def test_views_of_any_kind_are_their_values(nets, kind):
    q, x = nets[kind]
    expected = first(q(x))
    spread = torch.zeros(*x.shape[:-1], 2 * x.shape[-1])
    spread[..., ::2] = x
    for view in (
        spread[..., ::2], torch.cat([x, x])[len(x) :], torch.view_as_complex(torch.stack([x, x], -1)).imag,
        torch.view_as_complex(torch.stack([x, -x], -1)).conj().imag, nn.Parameter(x), x.clone().requires_grad_(),
    ):
        assert torch.equal(first(q(view)), expected)


@clause("STA-MEMORY")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [torch.vmap, lambda f: torch.func.grad(lambda x: f(x).sum())])
def test_transformations_of_functions_are_refused_in_words(nets, kind, change):
    q, x = nets[kind]
    with pytest.raises(TypeError, match="int8 kernels do not support vmap"):
        change(lambda x: first(q(x)))(x)


@clause("STA-MEMORY")
def test_tensors_of_other_kinds_are_refused_in_words(nets):
    q, x = nets["static"]
    nested = torch.nested.nested_tensor([x[0], x[1]], layout=torch.jagged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that masked tensors are new
        masked = torch.masked.masked_tensor(x, x > 0)
    for odd in (nested, masked):
        with pytest.raises(TypeError, match="expected a"):
            q(odd)


@clause("STA-LARGE")
@pytest.mark.parametrize("kind", ["static", "images", "dynamic"])
def test_distances_that_do_not_fit_are_computed_otherwise(nets, kind, monkeypatch):
    q, x = nets[kind]
    many = torch.cat([x] * 9)
    expected = q(many)
    for module in (memory, planner):
        monkeypatch.setattr(module, "LONGEST", 64)
    with pytest.raises(UnsupportedError):
        next(part for part in q.run_on("compiled").compiled.parts).at((tuple(many.shape),))
    assert torch.equal(q.run_on("compiled")(many), expected)


@clause("STA-LARGE")
def test_a_distance_that_does_not_fit_is_refused():
    for ends in ([0, 2**31], [-(2**31), 0], [0, 2**33 + 4]):
        with pytest.raises(UnsupportedError, match="bytes from a start, not"):
            memory.offset_table(np.array(ends))
    assert memory.offset_table(np.array([1 - 2**31, 2**31 - 1])).tolist() == [1 - 2**31, 2**31 - 1]
    assert memory.offset_table(np.array([], np.int64)).dtype == np.int32


@clause("STA-MEMORY")
def test_torch_tensors_that_only_follow_shapes_get_no_address():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        fake = tensors.new((2, 3))
    with pytest.raises(TypeError, match="got a FakeTensor: leave FakeTensorMode"):
        tensors.address(fake)
    assert tensors.float_address(fake) == 0


@clause("STA-MEMORY", "STA-DEFAULTS")
def test_addresses_and_tensors_for_machine_code_come_from_one_place():
    package = Path(qs.__file__).parent
    making = r"torch\.(empty|zeros|ones|full|rand|randn|arange|tensor|as_tensor)\w*\("
    rooms = {"": r"\.data_ptr\(", "engines": making, "kernels": r"\btorch\b"}
    for room, pattern in rooms.items():
        for path in (package / room).rglob("*.py"):
            others = ("backends", "capture", "tutorial", "conformance")  # which give no addresses to our kernels
            if path.name == "tensors.py" or path.relative_to(package).parts[0] in others:
                continue
            found = re.findall(pattern, re.sub(r'""".*?"""|#.*', "", path.read_text(encoding="utf-8"), flags=re.S))
            assert not found, f"{path}: {found}"


@clause("STA-RUN")
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3), (2, 1, 4)])
def test_a_tensor_of_an_array_has_its_axes_and_is_contiguous(shape):
    array = np.arange(np.prod(shape, dtype=int) * 2, dtype=np.uint8).reshape(*shape, 2)[..., 1]
    tensor = tensors.from_array(array)
    assert tuple(tensor.shape) == shape and tensor.is_contiguous() and tensor.numpy().tolist() == array.tolist()
