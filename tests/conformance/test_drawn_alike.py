"""Calls are drawn alike every time: what the records under spec/results say is said of the calls that are drawn now."""

import hashlib

import numpy as np
import pytest
from hypothesis import strategies as st

from quantspec import chapters
from quantspec.backends import protocol
from quantspec.backends.pytorch.engines import TorchEngine
from quantspec.backends.pytorch.fake_quantize import TorchDecomposed
from quantspec.conformance import results
from quantspec.conformance.draw_bulk import bulk
from quantspec.conformance.passed_on import checksums
from quantspec.conformance.sampling import for_all
from quantspec.numerics.affine import QParams

RECORDED = results.read_all(chapters.directory() / "results")
# Of all calls in bulk. Others would ask for other counts in the records, and for other counterexamples.
BULK = {
    "quantize": "c5ca54658b9c119a", "dequantize": "2057732d7090787a", "qparams": "0337739f9cd1dd20",
    "linear": "804f9418a998d52b", "linear_dynamic": "7d273cf77ae098a1", "conv2d": "f287d7b9d14d4cf3",
    "add": "7c2fdff4d9d4a3e8", "mul": "5653636007eabb8a", "concat": "d8ed323b2f33e66f",
    "max_pool2d": "53e742394b53f8d7", "avg_pool2d": "b7a94646873b9700", "adaptive_avg_pool2d": "4f595444b6113d26",
    "fold_batch_norm": "de23a7e5ca7cfc24",
}  # fmt: skip


def everything(value) -> bytes:
    """All numbers in a call's arguments or options, with their types and shapes."""
    if isinstance(value, QParams):
        value = [value.scale, value.zero_point, value.qmin, value.qmax, value.axis]
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, (list, tuple)):
        return b"[" + b",".join(map(everything, value)) + b"]"
    if isinstance(value, (np.ndarray, np.generic)):
        return f"{value.dtype}{np.shape(value)}".encode() + value.tobytes()
    return repr(value).encode()


def digest(operation: str) -> str:
    calls = [[call.arguments, call.options] for call in bulk(operation)]
    return hashlib.sha256(everything(calls)).hexdigest()[:16]


@pytest.mark.parametrize("operation", protocol.OPERATIONS)
def test_calls_in_bulk_are_those_of_the_records(operation):
    assert digest(operation) == BULK[operation]


@pytest.mark.parametrize("make", [lambda: TorchEngine("fbgemm"), TorchDecomposed], ids=["engine", "decomposed"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_an_adapter_passes_on_what_it_passed_on_when_its_results_were_recorded(make):
    backend = make()
    backend.operations = protocol.offers(backend)
    then = [one for one in RECORDED if (one.backend, one.version) == (backend.name, backend.version)]
    if not then:
        pytest.skip(f"nothing is recorded of {backend.name} {backend.version}")
    assert checksums(backend) == then[0].passed_on


def test_the_first_call_that_raises_is_the_last_one_that_is_drawn():
    """No smaller ones are looked for: ``shrink`` knows what a call is, Hypothesis does not."""
    seen = []

    def small(number):
        seen.append(number)
        if number >= 1000:
            raise ZeroDivisionError(str(number))

    with pytest.raises(ZeroDivisionError) as raised:
        for_all(st.integers(0, 10**9), small, examples=9, start=1)
    large = {number for number in seen if number >= 1000}
    assert {int(str(raised.value))} == large and large != {1000}
