"""Calls written down as scripts print, in a process that has nothing of ours, what the adapter answers."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from conformance.test_backends import PEERS, started
from quantspec.backends import protocol, reproduce
from quantspec.backends.outcome import outcome
from quantspec.backends.worker import Worker
from quantspec.conformance import run
from quantspec.conformance.call import Call
from quantspec.conformance.draw_bulk import bulk
from quantspec.conformance.session import Session, Violation, parts
from quantspec.conformance.shrink import smaller
from quantspec.numerics.affine import QParams

pytestmark = pytest.mark.usefixtures("copied_workers")
# Runs scripts one after the other and says what each printed, and at the end whether one of ours was there.
DRIVER = """
import contextlib, io, json, sys
said = []
for script in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(script, "script", "exec"), {"__name__": "__main__"})
    said.append(out.getvalue())
print(json.dumps([said, sorted(name for name in sys.modules if name.startswith("quantspec"))]))
"""
ANSWERED = 6  # so many calls of each operation
GRID, W = QParams(1, 0, 0, 255), QParams(1, 0, -128, 127)


def printed(scripts: list[str], folder, sources=None) -> list[list]:
    """What each script prints, a value a line, in one process of the environment that they ask for in their first
    line: a fresh one, or a copy of one of ``sources`` that has imported torch."""
    heads = [script.splitlines()[0] for script in scripts]
    wanted = {line.removeprefix("# run with ") for line in heads if line.startswith("#")}
    assert len(wanted) <= 1
    variables = dict(word.split("=") for word in " ".join(wanted).split())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1"} | variables
    flags, told, options = ("-W", "ignore"), json.dumps(scripts), {"capture_output": True, "text": True, "timeout": 300}
    if sources is None:
        command = [sys.executable, *flags, "-c", DRIVER]
        done = subprocess.run(command, input=told, env=environment, cwd=folder, **options)
    else:
        modules = ("numpy", "torch")
        done = sources.run(DRIVER, told, environment=environment, folder=folder, options=flags, modules=modules)
    assert done.returncode == 0, done.stderr[-3000:]
    said, ours = json.loads(done.stdout.splitlines()[-1])
    assert ours == []
    names = {"nan": np.nan, "inf": np.inf, "__builtins__": {}}
    return [[eval(line, names) for line in text.splitlines()] for text in said]  # noqa: S307


def size(call: Call) -> int:
    """The elements of all arrays of a call."""

    def count(value) -> int:
        if isinstance(value, (list, tuple)):
            return sum(map(count, value))
        return value.size if isinstance(value, np.ndarray) else 0

    return count(call.arguments)


def cut(call: Call, to: int = 100) -> Call:
    """The call with less of everything, until it is small enough or cannot be cut."""
    while size(call) > to and (less := next((c for c in smaller(call) if size(c) < size(call)), None)):
        call = less
    return call


def drawn(operation: str) -> list[Call]:
    """Calls of an operation, small, and one of what is no ordinary number."""
    calls = [small for small in (cut(call) for call in bulk(operation, count=12)) if size(small) <= reproduce.LARGEST]
    if operation == "quantize":
        unusual = np.float32([np.nan, np.inf, -np.inf, -0.0, 1e-40, 0.1])
        calls.insert(0, Call("quantize", (unusual, np.float32(0.1), 3), {"qmin": 0, "qmax": 255}))
    # The first are of unsigned codes and the last of signed ones: some of both come first.
    return [call for pair in zip(calls, calls[::-1]) for call in pair][: len(calls)]


def agrees(name: str, call: Call, answer, raw) -> bool:
    """Whether a script's raw result is the adapter's answer."""
    if name == "torch-fake-quantize":  # prints the values that the codes, which are our reading, stand for
        scale, zero_point = (np.asarray(v, np.float64) for v in call.arguments[1:3])
        if "axis" in call.options:
            scale, zero_point = (np.expand_dims(v, 1 - call.options["axis"]) for v in (scale, zero_point))
        answer = ((answer - zero_point) * scale).astype(np.float32)
    expected = parts(answer)
    # DynamicQuantizeLinear gives the codes before the qparams; observers give qparams of one element.
    got = raw[-len(expected) :] if isinstance(answer, tuple) else [raw]
    if call.operation == "qparams":
        got = [np.ravel(value)[0] for value in got]
    arrays = [
        np.array(value, part.dtype).reshape(part.shape if not part.size else np.shape(value))
        for value, part in zip(got, expected, strict=True)
    ]
    return all(a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in zip(arrays, expected))


@pytest.mark.parametrize("name", PEERS)
def test_a_script_prints_what_the_adapter_answers(name, tmp_path, sources):
    answers = []
    with started(name) as worker:
        for operation in worker.operations:
            answered, why = 0, set()
            for call in drawn(operation):
                answer = outcome(worker, operation, *call.arguments, **call.options)
                if answer.kind != "value":
                    why.add(answer.kind)
                    continue
                script = outcome(worker, "reproduction", operation, *call.arguments, **call.options)
                assert script.kind == "value", f"{name} {operation}: {script.message}"
                assert "quantspec" not in script.value and "torch.Tensor." not in script.value
                answers.append((call, answer.value, script.value))
                answered += 1
                if answered == ANSWERED:
                    break
            # A backend whose type of codes an operation does not take has its method all the same, and offers none of
            # its calls.
            assert answered or why == {"not offered"}, f"{name} answered no call of {operation}: {why}"
        assert answers, f"{name} answered nothing"
    prints = printed([script for _, _, script in answers], tmp_path, sources)
    for (call, answer, script), lines in zip(answers, prints, strict=True):
        (raw,) = lines
        why = f"{name} answers {call.operation} with {answer}, and this prints {raw}:\n{script}"
        assert agrees(name, call, answer, raw), why


def test_scripts_of_a_story_are_one_script(tmp_path):
    x_q, w_q = np.uint8([[1, 2, 3]]), np.int8([[4, 5, 6]])
    first = Call("linear", (x_q, GRID, w_q, W, None, GRID))
    last = Call("linear", (x_q, GRID, w_q, W, np.float32([100.0]), GRID), {"relu": True})
    with started("torch-fbgemm") as worker:
        otherwise = Violation(last, "1", "2", how="other codes")
        finding = run.described("BAK-PURE", "all", Session(worker), otherwise, (first,))
        assert printed([finding.reproduce], tmp_path) == [[[[32]], [[132]]]]
        unwritable = Call("linear", (np.zeros((1, 300), np.uint8), GRID, np.zeros((1, 300), np.int8), W, None, GRID))
        finding = run.described("BAK-PURE", "all", Session(worker), otherwise, (unwritable,))
        assert finding.reproduce == ""


def test_large_arrays_are_refused_and_calls_that_are_not_offered_are_not_written():
    with started("torch-fbgemm") as worker:
        large = outcome(worker, "reproduction", "dequantize", np.zeros(257, np.uint8), np.float32(1), 0)
        assert large.kind == "refused"
        assert large.message == "an array of 257 elements: scripts are written for 256 at most"
        arguments = np.zeros(1, np.float32), np.float32(1), 0
        assert outcome(worker, "reproduction", "quantize", *arguments, qmin=0, qmax=15).kind == "not offered"
    with Worker("quantspec-onnx") as ours:
        arguments = np.zeros(1, np.uint8), np.float32(1), 0
        assert outcome(ours, "reproduction", "dequantize", *arguments).kind == "not offered"
        assert protocol.REPRODUCTION not in ours.operations


class Kernel:
    """A kernel that ends whoever calls it."""

    def __call__(self, *arguments):
        raise AssertionError("called")


class Adapter:
    """An adapter whose kernel must not be called to write a call of it down."""

    def __init__(self):
        self.kernel = Kernel()

    def quantize(self, x, scale, zero_point, *, qmin, qmax):
        made = self.kernel(x, bytes(2))
        made.option = float(scale)
        made.invoke({"x": x})
        return np.ascontiguousarray(np.maximum(made.result(0)[0].transpose(1, 0), np.uint8(zero_point)))

    def dequantize(self, q, scale, zero_point):
        codes, _ = self.kernel(q, (1,), None)
        return codes.sum()

    def qparams(self, minimum):
        return float(self.kernel(minimum).item())

    def reproduction(self, operation, /, *arguments, **options):
        stand_ins = {"kernel": "kernels.kernel"}
        first = ["import kernels"]
        return reproduce.script(
            self, operation, arguments, options, first=first, attributes=stand_ins, comment="once"
        )


def test_a_call_is_written_down_without_being_made():
    adapter = Adapter()
    script = adapter.reproduction("quantize", np.float32([0.5, 1 / 3]), np.float32(0.1), 7, qmin=0, qmax=255)
    assert script.splitlines() == [
        "# once",
        "import base64, numpy as np; import kernels; h = float.fromhex",
        "a = kernels.kernel(np.array([0.5, h('0x1.555556p-2')], np.float32), base64.b64decode('AAA=')); "
        "a.option = h('0x1.99999ap-4')",
        "a.invoke({'x': np.array([0.5, h('0x1.555556p-2')], np.float32)})",
        "print(np.maximum(a.result(0)[0].transpose(1, 0), np.uint8(7)).tolist())",
    ]
    assert isinstance(adapter.kernel, Kernel)


def test_a_call_of_which_only_an_attribute_was_asked_and_not_used_is_not_written_down():
    class Asks:
        kernel = None

        def quantize(self, x):
            self.kernel(x, 1).shape  # noqa: B018
            return self.kernel(x, 2)

    text = reproduce.script(Asks(), "quantize", (7,), {}, attributes={"kernel": "kernel"})
    assert text == "\nprint(kernel(7, 2).tolist())\n"


def test_a_script_ends_where_the_adapter_needs_numbers():
    adapter = Adapter()
    assert adapter.reproduction("dequantize", np.zeros((0, 3), np.int8), 1, 0).splitlines()[-1] == (
        "print([v.tolist() for v in kernels.kernel(np.zeros((0, 3), np.int8), (1,), None)])"
    )
    assert adapter.reproduction("qparams", float("-inf")).splitlines()[1:] == [
        "import numpy as np; import kernels",
        "print(kernels.kernel(-np.inf).tolist())",
    ]
    with pytest.raises(TypeError, match="^value: no rule writes a object as an expression$"):
        adapter.reproduction("qparams", object())


@pytest.mark.parametrize(
    "value", [0.1, 1 / 3, -0.0, 5e-324, 1e308, 2.0**-23, float("inf"), float("-inf"), float("nan"), 255, -128, True]
)
def test_numbers_are_written_without_loss(value):
    read = eval(reproduce.number(value), {"np": np, "h": float.fromhex})  # noqa: S307
    assert type(read) is type(value) and np.array(read).tobytes() == np.array(value).tobytes()


def test_tensors_keep_their_order_of_memory():
    torch = pytest.importorskip("torch")
    from quantspec.backends.pytorch import reproduce

    assert reproduce.torch_name(torch.quantize_per_tensor) == "torch.quantize_per_tensor"
    transposed, empty = torch.arange(6).reshape(2, 3).T, torch.zeros((0, 2), dtype=torch.int8)
    for tensor in (transposed, torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last), empty):
        (text,) = reproduce.literal(tensor)
        back = eval(text, {"torch": torch, "h": float.fromhex})  # noqa: S307
        assert torch.equal(back, tensor) and back.stride() == tensor.stride() and back.dtype == tensor.dtype
    with pytest.raises(ValueError, match="^value: expected a dense tensor, got strides"):
        reproduce.literal(torch.zeros(6)[::2])
