"""Backends in processes of their own: whatever they do, the caller learns it and goes on."""

import importlib.util
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

import quantspec
from quantspec.backends import protocol, registry, wire
from quantspec.backends import worker as workers
from quantspec.backends.outcome import Crashed, Died, Hung, outcome
from quantspec.backends.worker import Worker
from quantspec.numerics.affine import QParams

HERE = "conformance.broken_backends"
ROOT = Path(__file__).parents[2]
CODES = np.arange(4, dtype=np.uint8)


@pytest.fixture
def start():
    """Starts workers that end with the test."""
    started = []

    def start(name, **options):
        started.append(Worker(f"{HERE}:{name}", **options))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


def quantized(worker):
    return outcome(worker, "quantize", np.float32([1, 2]), np.float32(0.5), 3, qmin=0, qmax=255)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("Divides", "crashed", "crashed: SIGFPE on quantize(float32[2], 0.5, 3, qmin=0, qmax=255)"),
        ("Segfaults", "crashed", "crashed: SIGSEGV on quantize("),
        ("Leaves", "exited", "exited: exit code 3 on quantize("),
        ("Hangs", "hung", "hung: no answer after 1 s on quantize("),
        ("WritesOverThePipe", "corrupted", "corrupted: a frame cannot begin with"),
        ("Refuses", "refused", "scale: expected a positive number"),
        ("Lacks", "not offered", "one scale a channel"),
        ("Raises", "error", "ZeroDivisionError: by nothing"),
        ("ReturnsAnObject", "error", "TypeError: expected arrays"),
    ],
)
def test_whatever_goes_wrong_is_an_outcome_and_the_next_call_works(start, name, kind, message):
    worker = start(name, seconds=1)
    before = worker.dequantize(CODES, np.float32(0.5), 1)
    got = quantized(worker)
    assert got.kind == kind and got.message.startswith(message)
    worker.seconds = 30
    assert worker.dequantize(CODES, np.float32(0.5), 1).tolist() == before.tolist() == [-0.5, 0, 0.5, 1]
    assert worker.starts == (2 if kind in ("crashed", "exited", "hung", "corrupted") else 1)


def test_what_a_dying_backend_said_is_kept(start):
    worker = start("Leaves")
    with pytest.raises(Died) as caught:
        worker.quantize(CODES, 1, 0, qmin=0, qmax=255)
    assert caught.value.said == "I am leaving." and caught.value.call.startswith("quantize(uint8[4]")


def test_what_a_backend_prints_does_not_disturb(start):
    assert quantized(start("Prints")).value.tolist() == [0]


def test_a_backend_that_cannot_be_made_says_why():
    with pytest.raises(protocol.NotOffered, match="this build lacks it"):
        Worker(f"{HERE}:CannotBeMade")
    with pytest.raises(Crashed, match="SIGILL on start-up"):
        Worker(f"{HERE}:DiesWhenMade")
    with pytest.raises(protocol.BackendError, match="AttributeError"):
        Worker(f"{HERE}:Nobody")
    with pytest.raises(ImportError, match="not installed: there is no module nowhere.at_all"):
        Worker("nowhere.at_all:Backend")


@pytest.mark.parametrize("name", [name for name, entry in registry.ENTRIES.items() if entry.needs])
def test_a_peer_that_is_missing_is_told_with_the_extra_that_brings_it(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    module, extra = registry.ENTRIES[name].needs[0], registry.ENTRIES[name].extra
    missing = f"not installed: there is no module {module}; pip install 'quantspec[{extra}]'"
    assert registry.why_not_installed(name) == missing and not registry.installed(name)


def test_an_extra_brings_what_its_backends_need():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for entry in registry.ENTRIES.values():
        brought = {package.partition(">")[0].replace("-", "_") for package in extras.get(entry.extra, ())}
        assert set(entry.needs) <= brought, entry.name


def test_a_worker_is_what_its_backend_is(start):
    worker = start("Echoes")
    assert (worker.name, worker.version) == ("broken", "1")
    assert protocol.offers(worker) == ("quantize", "dequantize", "linear")
    assert protocol.dialects(worker, "quantize") == {"onnx", "exact"}
    assert protocol.dialects(worker, "dequantize") == {"exact"}
    with pytest.raises(ValueError, match="declares no dialect"):
        protocol.dialects(worker, "linear")
    with pytest.raises(AttributeError):
        worker.conv2d()
    assert outcome(worker, "conv2d").kind == "not offered"


def test_arguments_and_results_cross_unchanged(start):
    worker = start("Echoes", environment={"QUANTSPEC_TEST": "set"}, threads=2)
    fortran = np.asfortranarray(np.eye(3, dtype=np.uint8))
    arrays = [np.float32([[np.nan, np.inf, -0.0]]), np.zeros((0, 3), np.int8), np.array(7, np.int32), fortran]
    for array in arrays:
        back = worker.quantize(array, 1, 0, qmin=0, qmax=255)
        assert back.dtype == array.dtype and back.shape == array.shape and back.tobytes() == array.tobytes()
    grid = QParams(np.float32([0.1, 3e-20]), np.int32([5, 6]), 0, 255, axis=0)
    answer = worker.linear(grid, None, [(1, np.float32(0.1))], relu=True, scale=float("nan"))
    (back, nothing, pairs), options, threads, variable = answer
    assert (back.scale.tolist(), back.zero_point.tolist()) == (grid.scale.tolist(), [5, 6])
    assert (back.qmin, back.qmax, back.axis) == (0, 255, 0)
    assert nothing is None and pairs == [(1, np.float32(0.1))] and pairs[0][1].dtype == np.float32
    assert options["relu"] is True and np.isnan(options["scale"]) and (threads, variable) == ("2", "set")


def test_a_call_costs_less_than_a_millisecond(start):
    worker = start("Echoes")
    array, times = np.zeros(1000, np.float32), []
    for _ in range(200):
        begin = time.perf_counter()
        worker.quantize(array, 1, 0, qmin=0, qmax=255)
        times.append(time.perf_counter() - begin)
    # The fastest of many: what else the machine does is not measured.
    assert min(times) < 1e-3


def test_a_hanging_worker_that_does_not_read_is_ended(start):
    worker = start("Hangs", seconds=0.5)
    with pytest.raises(Hung):
        worker.quantize(np.zeros(10**7, np.float32), 1, 0, qmin=0, qmax=255)


def test_only_what_the_pipe_carries_can_be_sent():
    for value in (object(), {1, 2}.__iter__(), b"bytes", np.array([object()])):
        with pytest.raises((TypeError, ValueError)):
            wire.pack({"value": value})


def test_known_backends_and_those_of_others_are_found():
    assert registry.find("torch-x86").factory.endswith(":TorchEngine")
    assert registry.find("my_package.my_module:MyBackend").factory == "my_package.my_module:MyBackend"
    with pytest.raises(ValueError, match="backend: expected one of torch-x86, .*, quantspec-.*, got 'best'"):
        registry.find("best")
    with pytest.raises(ValueError, match="one of quantspec-exact, .*'quantspec-onx'; did you mean quantspec-onnx"):
        registry.find("quantspec-onx")
    for name in registry.ENTRIES:
        assert isinstance(registry.why_not_installed(name), str)
    assert not registry.installed("nowhere.at_all:Backend") and registry.installed("json:Backend")
    assert quantspec.backends


def test_bytes_that_are_no_frame_are_refused():
    frame = wire.pack({"value": np.zeros(3, np.int8)})
    text = frame[wire.HEAD.size : -3]

    def told(text, body):
        data = [wire.HEAD.pack(wire.MAGIC, len(text), len(body)), text, body]
        return wire.unpack(lambda length: data.pop(0))

    assert told(text, b"abc")["value"].tolist() == [97, 98, 99]
    for changed, body, message in (
        (text, b"abcd", "1 bytes are of no array"),
        (text, b"ab", "an array of .* is cut off"),
        (text.replace(b"3", b"-3"), b"", "there is no array of .* and shape"),
        (text[:-1], b"abc", "the body of a frame is damaged"),
        (text.replace(b'"dict"', b'"tict"'), b"abc", "damaged: there is no kind 'tict' of values"),
    ):
        with pytest.raises(wire.Malformed, match=message):
            told(changed, body)


def test_a_backend_that_closes_its_pipe_and_lives_on_is_ended(start):
    worker = start("ClosesThePipe", seconds=30)
    got = quantized(worker)
    assert got.kind == "corrupted" and got.message.startswith("corrupted: the pipe was closed on quantize(")
    assert worker.dequantize(CODES, np.float32(0.5), 1).tolist() == [-0.5, 0, 0.5, 1]


def test_the_library_that_checks_memory_lies_beside_the_c_library(tmp_path, monkeypatch):
    maps, libc, checker = (tmp_path / name for name in ("maps", "libc.so.6", "libc_malloc_debug.so.0"))
    opened = {"/proc/self/maps": maps}
    monkeypatch.setattr(workers, "Path", lambda name: opened.get(name) or Path(name))
    found = workers.checking_library.__wrapped__
    assert found() is None  # no such file
    maps.write_text(f"7f00-7f01 r-xp 00000000 fd:01 77 {tmp_path}/libm.so.6\n7f02-7f03 rw-p 00000000 00:00 0\n")
    assert found() is None
    with maps.open("a", encoding="utf-8") as file:
        file.write(f"7f04-7f05 r-xp 00000000 fd:01 78                 {libc}\n")
    assert found() is None
    checker.touch()
    assert found() == str(checker)
