"""Memory that an int8 network takes: resident, and at most while it is quantized or loaded.

Each measurement has a process of its own, which first does the same with a small network, so that what a library
loads once is not counted: ``PYTHONPATH=tests python -m bench.memory PEER FOLDER quantize``, then ``load``.
"""

import argparse
import ctypes
import gc
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

import quantspec as qs

from . import openvino_peers, peers, rows

WIDTH, SMALL, EXAMPLES = 4096, 64, 4
Network = Any  # called with a batch


class Peer(Protocol):
    """A library's int8 form of a network: ``quantized`` makes it, ``store`` writes it, ``loaded`` reads it again.

    The networks run, and hold all that they need. ``suffix``: of the file.
    """

    suffix: str

    def quantized(self, model: nn.Module, x: torch.Tensor, path: Path) -> Network: ...

    def store(self, network: Network, path: Path) -> None: ...

    def loaded(self, path: Path, x: torch.Tensor) -> Network: ...


class Ours:
    """quantspec, static or dynamic."""

    suffix = ""

    def __init__(self, dynamic: bool):
        self.dynamic = dynamic

    def quantized(self, model: nn.Module, x: torch.Tensor, path: Path) -> Network:
        return qs.quantize_dynamic(model) if self.dynamic else qs.quantize(model, [x])

    def store(self, network: Network, path: Path) -> None:
        network.save(path)

    def loaded(self, path: Path, x: torch.Tensor) -> Network:
        return qs.load(path)


class TorchAo:
    """torch.ao, dynamic."""

    suffix = ""

    def quantized(self, model: nn.Module, x: torch.Tensor, path: Path) -> Network:
        return peers.dynamic_torch(model, "x86")

    def store(self, network: Network, path: Path) -> None:
        torch.save(network, path)

    def loaded(self, path: Path, x: torch.Tensor) -> Network:
        torch.backends.quantized.engine = "x86"
        return torch.load(path, weights_only=False)


class Runtime:
    """ONNX Runtime, dynamic."""

    suffix = ""

    def quantized(self, model: nn.Module, x: torch.Tensor, path: Path) -> Network:
        source = peers.exported(model, x, path.parent)
        quantize_dynamic(str(source), str(path), weight_type=QuantType.QInt8, per_channel=False)
        return self.loaded(path, x)

    def store(self, network: Network, path: Path) -> None:
        """It is stored already."""

    def loaded(self, path: Path, x: torch.Tensor) -> Network:
        session = peers.session(path, len(x), 1)
        return lambda batch: session.run(None, {"x": batch.numpy()})


class OpenVino:
    """OpenVINO with NNCF's static codes."""

    suffix = ".xml"

    def quantized(self, model: nn.Module, x: torch.Tensor, path: Path) -> Network:
        openvino_peers.quantized(peers.exported(model, x, path.parent), [x], False, path)
        return self.loaded(path, x)

    def store(self, network: Network, path: Path) -> None:
        """It is stored already."""

    def loaded(self, path: Path, x: torch.Tensor) -> Network:
        request = openvino_peers.compiled(path, x.shape, 1, openvino_peers.FLOAT32).create_infer_request()
        return lambda batch: request.infer({0: batch.numpy()})


PEERS: dict[str, Peer] = {
    "quantspec static": Ours(False),
    "quantspec dynamic": Ours(True),
    "torch.ao dynamic": TorchAo(),
    "onnxruntime dynamic": Runtime(),
    "openvino NNCF": OpenVino(),
}


def status(key: str) -> int:
    """Bytes of this process, as Linux tells them."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def at_rest() -> int:
    """Resident bytes when all that is free has gone back to the system; the peak is counted from here."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return status("VmRSS")


def network(width: int) -> tuple[nn.Module, torch.Tensor]:
    """Three square layers, and an input for them."""
    return rows.seeded(lambda: rows.wide(width))(), torch.rand(EXAMPLES, width)


def stored(path: Path) -> int:
    """Bytes of a stored network; OpenVINO keeps its weights in a file beside it."""
    beside = path.with_suffix(".bin")
    return path.stat().st_size + (beside.stat().st_size if path.suffix == ".xml" else 0)


def quantizing(peer: Peer, folder: Path) -> dict[str, int]:
    """What quantizing takes, the float network included, and what stays when that is given up."""
    model, x = network(SMALL)
    path = folder / f"small{peer.suffix}"
    q = peer.quantized(model, x, path)
    q(x)
    peer.store(q, path)
    del model, q
    before, path = at_rest(), folder / f"large{peer.suffix}"
    model, x = network(WIDTH)
    floats = at_rest() - before
    q = peer.quantized(model, x, path)
    peak = status("VmHWM") - before
    del model
    q(x)
    resident = at_rest() - before
    peer.store(q, path)
    return {"float": floats, "resident": resident, "peak": peak, "stored": stored(path)}


def loading(peer: Peer, folder: Path) -> dict[str, int]:
    """What loading takes, and what stays."""
    small, x = folder / f"small{peer.suffix}", torch.rand(EXAMPLES, SMALL)
    peer.loaded(small, x)(x)
    before, path, x = at_rest(), folder / f"large{peer.suffix}", torch.rand(EXAMPLES, WIDTH)
    q = peer.loaded(path, x)
    peak = status("VmHWM") - before
    q(x)
    return {"resident": at_rest() - before, "peak": peak, "stored": stored(path)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("phase", choices=["quantize", "load"])
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # threads of torch's have memory of their own
    ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: large blocks are given back when they are freed
    with peers.quiet(), torch.no_grad():
        found = (quantizing if chosen.phase == "quantize" else loading)(PEERS[chosen.peer], chosen.folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
