"""What is no network's time: calibration, observers, conversion of floats and codes, start-up, and how time grows."""

import json
import os
import subprocess
import sys
import tempfile
from statistics import median

import numpy as np
import pytest
import torch

import programs
import quantspec as qs
from bench import memory, peers, rows, timing
from quantspec.backends import registry
from quantspec.backends.reference import ReferenceBackend
from quantspec.engines.compiled.engine import Compiled
from quantspec.engines.reference import Reference
from quantspec.ir.program import Linear
from quantspec.kernels import arrays
from quantspec.numerics import affine
from quantspec.numerics.affine import QParams
from quantspec.tutorial import zoo
from quantspec.tutorial.models import MLP

BATCHES = 8
CALIBRATED = {
    "tutorial batch 64": (rows.seeded(MLP), (64, 784)),
    "mlp1024 batch 64": (rows.seeded(lambda: rows.wide(1024)), (64, 1024)),
    "resnet18 batch 4": (lambda: zoo.build("resnet18", 224), (4, 3, 224, 224)),
}


@pytest.mark.parametrize("name", CALIBRATED)
def test_calibration(name, bench):
    build, shape = CALIBRATED[name]
    model = build()
    batches = [torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(BATCHES)]
    prepared = qs.prepare(model)
    fresh = dict(prepared.observers)

    def calibrate():
        prepared.observers = fresh
        for batch in batches:
            prepared(batch)

    def forward():
        for batch in batches:
            model(batch)

    with torch.inference_mode():
        seconds = timing.side_by_side({"observed": calibrate, "float": forward}, bench.budget)
    what = f"time of {BATCHES} calibration batches through new min-max observers over the float forward passes, less 1"
    overhead = seconds["observed"] / seconds["float"] - 1
    bench.measure(f"calibration overhead, {name}", overhead, "", of=what, most=0.10)


@pytest.mark.parametrize("count", [2**16, 2**20])
def test_observers(count, bench):
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    batches = [torch.randn(count, generator=generator) * (1 + seed) for seed, generator in enumerate(generators)]

    def ours(observer):
        for batch in batches:
            observer = observer.observe(batch.numpy())
        return observer.range()

    def theirs():
        observer = torch.ao.quantization.HistogramObserver()
        for batch in batches:
            observer(batch)
        return observer.calculate_qparams()

    functions = {
        "histogram": lambda: ours(qs.HistogramObserver()),
        "mse": lambda: ours(qs.MSEObserver()),
        "torch.ao": theirs,
    }
    with torch.no_grad(), peers.quiet():
        seconds = timing.side_by_side(functions, bench.budget)
    what = f"time of torch.ao's HistogramObserver (4 batches of {count:,} values and qparams) over ours"
    seen, ratio = f"{what}, its own search among them", seconds["torch.ao"] / seconds["histogram"]
    bench.measure(f"histogram observer, {count:,} values", ratio, "x", of=seen, least=5)
    searched, ratio = f"{what}, MSEObserver, which searches as theirs does", seconds["torch.ao"] / seconds["mse"]
    bench.measure(f"histogram observer with search, {count:,} values", ratio, "x", of=searched, least=5)


@pytest.mark.parametrize("count", [2**16, 2**20, 2**25])
def test_conversion(count, bench):
    x = np.random.default_rng(0).normal(size=count).astype(np.float32)
    grid = affine.qparams(x.min(), x.max(), qmin=0, qmax=255, symmetric=False)
    q = arrays.quantize(x, grid.array_grid)
    assert np.array_equal(q[:100_000], grid.quantize(x[:100_000]))
    # 5 bytes a value pass in either direction, so a copy of as many bytes copies 2.5 a value.
    source, target = np.ones(count * 5 // 2, np.uint8), np.ones(count * 5 // 2, np.uint8)
    to_codes, to_floats = np.ones(count, np.uint8), np.ones(count, np.float32)
    functions = {
        "quantize": lambda: arrays.quantize(x, grid.array_grid, out=to_codes),
        "dequantize": lambda: arrays.dequantize(q, grid.array_grid, out=to_floats),
        "new quantize": lambda: arrays.quantize(x, grid.array_grid),
        "new dequantize": lambda: arrays.dequantize(q, grid.array_grid),
        "copy": lambda: np.copyto(target, source),
        "new copy": lambda: source.copy(),
    }
    seconds = timing.side_by_side(functions, bench.budget)
    for name in ("quantize", "dequantize"):
        speed = 5 * count / seconds[name] / 1e9
        what = "bytes read and written per second by kernels.arrays, into memory that is there"
        bench.measure(f"{name}, {count:,} values", speed, "GB/s", of=what)
        what, ratio = "its speed over that of NumPy's copy of as many bytes", seconds["copy"] / seconds[name]
        bench.measure(f"{name} over a copy, {count:,} values", ratio, "", of=f"{what} (copyto)", least=0.7)
        new = f"both into new memory, of which the copy needs {'more' if name == 'quantize' else 'less'}"
        ratio = seconds["new copy"] / seconds[f"new {name}"]
        bench.measure(f"new {name} over a new copy, {count:,} values", ratio, "", of=f"{what}, {new}")


IMPORT = "import time, torch; t = time.perf_counter(); import quantspec; print(time.perf_counter() - t)"
COMPILES = """
import sys, torch
before = set(sys.modules)
import quantspec
print(sum(name in ("llvmlite", "numba") for name in set(sys.modules) - before))
"""
FIRST = """
import json, time, warnings
warnings.simplefilter("ignore")
import torch, quantspec as qs
from bench import rows
torch.set_num_threads(1)
row = next(row for row in rows.rows() if row.name == {name!r})
model, batch = row.build(), row.batch()
q = qs.quantize(model, [batch])
start = time.perf_counter(); q(batch); first = time.perf_counter() - start
start = time.perf_counter(); q(batch)
print(json.dumps([first, time.perf_counter() - start]))
"""


def child(script: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    command, environ = [sys.executable, "-c", script], os.environ | environment
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout.strip()


def test_import(bench):
    child(IMPORT)
    seconds = median(float(child(IMPORT)) for _ in range(5))
    bench.measure("import", seconds, "s", of="`import quantspec` after `import torch`", most=0.3)
    compilers, what = int(child(COMPILES)), "how many of llvmlite and numba `import quantspec` loads"
    bench.measure("compilers imported", compilers, "", of=what, most=0)


@pytest.mark.parametrize("name", ["tutorial/batch=1", "mobilenet_v2/batch=1"])
def test_first_call(name, bench):
    colds, warms = [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            places = dict(QUANTSPEC_KERNELS=folder, NUMBA_CACHE_DIR=folder)
            cold, usual = json.loads(child(FIRST.format(name=name), **places))
            warm, _ = json.loads(child(FIRST.format(name=name), **places))
        colds.append(cold)
        warms.append(warm - usual if warm > 2 * usual else warm)
    what = f"first call of {name} in a fresh process"
    bench.measure(f"first call cold, {name}", median(colds), "s", of=f"{what}, nothing compiled before", most=5)
    what = f"{what}, kernels stored by an earlier process"
    bench.measure(f"first call warm, {name}", median(warms), "s", of=what, most=0.3)


def test_slope(bench):
    """A batch as large as the network is wide, so that one number scales all."""
    macs, seconds = [], []
    with torch.inference_mode(), timing.without_collection():
        for width in (160, 256, 416, 672, 1024, 1504):
            batch = torch.rand(width, width)
            q = qs.quantize(rows.seeded(lambda width=width: rows.wide(width))(), [batch])
            timed = timing.Timed("", lambda q=q, batch=batch: q(batch))
            count, once = timing.block_size(timed)
            blocks = max(7, min(100, int(0.5 / (once * count))))
            seconds.append(median(timing.block(timed, count, once) for _ in range(blocks)))
            macs.append(3 * width**3)
    slope = float(np.polyfit(np.log(macs), np.log(seconds), 1)[0])
    span = f"from {macs[0]:.1e} to {macs[-1]:.1e}"
    what = f"log-log slope of time against multiply-accumulates, {span}: MLPs whose width is their batch size"
    bench.measure("growth, highest", slope, "", of=what, most=1.05)
    bench.measure("growth, lowest", slope, "", of="the same", least=0.95)


def test_memory(bench):
    """The peak is the process's own, so that it is measured in others."""
    script = """
import resource, torch, quantspec as qs
from bench import rows
model = rows.seeded(lambda: rows.wide(1024))()
qs.quantize(model, (torch.rand(64, 1024) for _ in range({count})), observer=qs.HistogramObserver())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    few, many = (float(child(script.format(count=count))) for count in (4, 200))
    what = "peak memory of calibrating with 200 batches over that with 4 (1024-wide MLP, histograms)"
    bench.measure("memory of calibration", many / few, "x", of=what, most=1.05)


MB, PAGES, BLOCK = 1e6, 2 * 2**20, 8 * 2**20  # what SIZ-RESIDENT and SIZ-PEAK allow for pages and for a block


@pytest.mark.parametrize("name", memory.PEERS)
def test_resident(name, bench):
    """Three layers of 4096 x 4096 weights, with each library in a process of its own."""
    if missing := [peer for peer in peers.absent() if peer.name == name]:
        bench.absent(f"memory, {name}", missing[0].reason)
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", "-m", "bench.memory", name, folder]
        run = lambda phase: subprocess.run([*command, phase], check=True, capture_output=True, text=True)  # noqa: E731
        made, loaded = (json.loads(run(phase).stdout.splitlines()[-1]) for phase in ("quantize", "load"))
    ours = name.startswith("quantspec")
    sizes = f"in float32 {made['float'] / MB:.0f} MB, stored {made['stored'] / MB:.1f} MB"
    of = f"three layers of 4096 x 4096 weights, {sizes}"
    resident, most = 1.1 * made["stored"] + PAGES, made["float"] + 1.3 * made["stored"] + BLOCK
    for what, value, limit in (
        ("resident", made["resident"], resident),
        ("resident when loaded", loaded["resident"], resident),
        ("peak of quantizing", made["peak"], most),
        ("peak of loading", loaded["peak"], 1.3 * made["stored"] + BLOCK),
    ):
        bench.measure(f"memory, {name}, {what}", value / MB, "MB", of=of, most=limit / MB if ours else None)
    if ours:
        ratio, of = made["float"] / made["resident"], "resident bytes of the float32 network over those of the int8 one"
        bench.measure(f"memory, {name}, how many times less", ratio, "x", of=of, least=3.6)


THREADED = (
    "tutorial/batch=1", "tutorial/batch=1024", "mlp1024/batch=1", "mlp1024/batch=64", "mlp4096/batch=1",
    "resnet18/batch=1", "mobilenet_v2/batch=1", "unet/batch=1", "dynamic-linear/rows=128", "lstm/batch=1",
    "lstm/batch=16", "gru/batch=16", "embedding-bag/batch=1024", "weights-only/rows=1", "weights-only/rows=4",
)  # fmt: skip
LONG = 1e-3  # seconds from which two threads are to be used well


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two threads take two cores")
@pytest.mark.parametrize("case", [row for row in rows.rows() if row.name in THREADED], ids=lambda row: row.name)
def test_efficiency(case, bench):
    """One thread and two in turn, so that both meet the same machine."""
    q, batch = peers.quantized(case, case.build()), case.batch()
    ways = [timing.Timed(str(n), lambda: q(batch), lambda n=n: torch.set_num_threads(n)) for n in (1, 2)]
    with torch.inference_mode():
        seconds = timing.alternating(ways, bench.budget)
    efficiency = seconds["1"] / seconds["2"] / 2
    of = f"time of one thread ({seconds['1'] * 1e6:,.0f} us) over twice that of two ({seconds['2'] * 1e6:,.0f} us)"
    least = 0.8 if seconds["1"] >= LONG else 0.48  # two threads never take longer than one, but for noise
    bench.measure(f"efficiency of two threads, {case.name}", efficiency, "", of=of, least=least)


@pytest.mark.parametrize("name", ["embedding-bag/batch=1024", "weights-only/rows=1", "weights-only/rows=4"])
def test_bandwidth(name, bench):
    """What reads most of its bytes once, beside a copy of memory as large as the network."""
    row = next(row for row in rows.rows() if row.name == name)
    model, batch = row.build(), row.batch()
    q = peers.quantized(row, model)
    source, target = np.ones(q.nbytes, np.uint8), np.ones(q.nbytes, np.uint8)
    functions = {"ours": lambda: q(batch), "copy": lambda: np.copyto(target, source)}
    with torch.inference_mode():
        seconds = timing.side_by_side(functions, bench.budget)
    ours, copied = rows.work(model, batch, q.nbytes).nbytes / seconds["ours"], 2 * q.nbytes / seconds["copy"]
    sizes = f"{ours / 1e9:.1f} of {copied / 1e9:.1f} GB/s"
    of = f"bytes read and written per second over those of NumPy's copy of the network's size, {sizes}, one thread"
    bench.measure(f"{name} over a copy", ours / copied, "", of=of, least=0.8)


@pytest.mark.parametrize("name", ["quantspec", "torch.ao x86", "torch.ao onednn"])
def test_exactness(name, bench):
    """One layer on codes of the full range, whose products some add in pairs of 16 bits where the CPU has no dot
    products of bytes."""
    r = np.random.default_rng(0)
    x, w, y = QParams(2.0**-7, 128, 0, 255), QParams(2.0**-10, 0, -128, 127), QParams(2.0**-5, 128, 0, 255)
    x_q, w_q = r.integers(0, 256, (64, 1024)).astype(np.uint8), r.integers(-128, 128, (1024, 1024)).astype(np.int8)
    if name == "quantspec":
        program = programs.between(x, [Linear("y", "x.codes", "y", w_q, None, x, w, y, False)], y)
        batch = {"x": torch.from_numpy(x.dequantize(x_q))}
        expected, got = Reference(program)(batch).numpy(), Compiled(program)(batch).numpy()
    else:
        backend = registry.find(name.replace("torch.ao ", "torch-")).make()
        exact = ReferenceBackend("fbgemm")  # how both round what they add
        expected, got = (each.linear(x_q, x, w_q, w, None, y) for each in (exact, backend))
    of = f"of {got.size:,} outputs of a layer of 1024 inputs on codes of the full range, those whose sum is not exact"
    wrong = int((expected != got).sum())
    bench.measure(f"wrong outputs, {name}", wrong, "", of=of, most=0 if name == "quantspec" else None)
