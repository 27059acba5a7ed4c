"""A model whose parts are int8 networks: what ``quantize`` returns where Python of the user's stands between them."""

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from quantspec.capture import copies
from quantspec.capture.calls import NotPlain, Way, call_of, key_of
from quantspec.capture.recorder import CAPTURED
from quantspec.errors import UnsupportedError
from quantspec.storage import file

from .module import QuantizedModule
from .report import Report

SEEN = "called in a way, or with sizes, that calibration did not have: it is computed in float"
MOST = 64  # calls that an island remembers


class Island(nn.Module):
    """Computes what a module of the model did, by the network of the way in which it is called. It stands in that
    module as its ``forward``."""

    original: Callable[..., Any]

    def __init__(self, path: str, forward: Callable[..., Any], networks: Mapping[Way, nn.Module]):
        super().__init__()
        self.path = path
        self.ways = [way.told() for way in networks]
        self.known: dict[Any, tuple[int, tuple[int, ...]]] = {}
        self.networks = nn.ModuleList(networks.values())
        self.__dict__["original"] = forward  # not registered: a module's own method
        self.eval()
        self.unseen = 0

    def network(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[nn.Module | None, list[torch.Tensor]]:
        """The network for a call, and the tensors that it takes. How calls of plain arguments come out is kept."""
        given = (*args, *kwargs.values())
        key = key_of(args, kwargs)
        index, order = self.known.get(key, (-1, ()))
        if index >= 0:
            return self.networks[index], [given[place] for place in order]
        try:
            way, tensors = call_of(self.original, args, kwargs)
        except (NotPlain, TypeError):
            return None, []
        index = next((number for number, known in enumerate(self.ways) if known == way), -1)
        if index < 0:
            return None, []
        places = {id(value): place for place, value in enumerate(given)}
        found = dict.fromkeys(map(id, tensors))
        if key is not None and len(self.known) < MOST and len(found) == len(tensors) and found.keys() <= places.keys():
            self.known[key] = index, tuple(places[name] for name in found)
        return self.networks[index], tensors

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        network, tensors = self.network(args, kwargs)
        if network is not None:
            try:
                return network(*tensors)
            except AssertionError as error:
                if not str(error).startswith(CAPTURED):
                    raise
        return self.in_float(*args, **kwargs)

    def in_float(self, *args: Any, **kwargs: Any) -> Any:
        """What the module itself gives."""
        self.unseen += 1
        if self.unseen == 1:
            warnings.warn(f"module {self.path!r} is {SEEN}", stacklevel=2)
        return self.original(*args, **kwargs)


class LayerIsland(nn.Module):
    """Computes what a layer did, for whatever arguments it is called with."""

    original: Callable[..., Any]

    def __init__(self, network: nn.Module):
        super().__init__()
        self.networks = nn.ModuleList([network])
        self.__dict__["original"] = None
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        values = (*args, *kwargs.values())
        if any(isinstance(value, nn.utils.rnn.PackedSequence) for value in values):
            return self.original(*args, **kwargs)
        return self.networks[0](*args, **kwargs)


def attach(model: nn.Module, networks: Mapping[str, Mapping[Way, nn.Module]]) -> dict[str, Island]:
    """Puts networks in place of the forwards of modules of a model of ours."""
    islands = {}
    for path, ways in networks.items():
        module = model.get_submodule(path)
        islands[path] = module.__dict__["forward"] = Island(path, module.forward, ways)
    return islands


class QuantizedModel(nn.Module):
    """A copy of the user's model in which parts are int8 networks. Calling it takes and gives what the model did; other
    attributes are the model's.

    ``islands`` are the parts by their paths. Between them the model's own Python runs as it was.
    """

    def __init__(
        self, model: nn.Module, networks: Mapping[str, Mapping[Way, nn.Module]], stops: tuple[Any, ...] = (),
        report: Report | None = None,
    ):  # fmt: skip
        super().__init__()
        self.report = report
        self.python = model
        self.__dict__["islands"] = attach(model, networks)
        self.stops = stops
        super().train(False)

    def place(self, islands: dict[str, LayerIsland]) -> None:
        """Puts networks in the place of layers."""
        for path, island in islands.items():
            module = self.python.get_submodule(path)
            island.__dict__["original"] = module.forward
            self.islands[path] = module.__dict__["forward"] = island

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_modules", {}).get("python")
            if model is None or name.startswith("__"):
                raise
            return getattr(model, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives. Inputs are not written to."""
        with torch.no_grad():
            if "" not in self.islands:
                args, kwargs = copies.cloned((args, kwargs))
            return self.python(*args, **kwargs)

    def networks(self) -> Iterator[tuple[str, QuantizedModule]]:
        """The int8 networks, with the paths of the modules that they stand for."""
        for path, island in self.islands.items():
            for network in island.networks:
                assert isinstance(network, QuantizedModule)
                yield path, network

    @property
    def engine(self) -> str:
        """The name of the engine that runs the networks."""
        return next((network.engine for _, network in self.networks()), "auto")

    @property
    def program(self) -> Any:
        """The network as plain data, where the whole model is one. Raises UnsupportedError, naming the Python,
        otherwise."""
        found = list(self.networks())
        if len(found) == 1 and found[0][0] == "":
            return found[0][1].program
        between = "; ".join(map(str, self.stops)) or "layers that were replaced where they are"
        raise UnsupportedError(f"program: this model is Python around {len(found)} networks: {between}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the network where the whole model is one; UnsupportedError otherwise, as no file holds Python."""
        file.save(self.program, path)

    def run_on(self, engine: str) -> "QuantizedModel":
        """The same model with its networks on another engine."""
        twin = copy.deepcopy(self)
        for island in twin.islands.values():
            for index, network in enumerate(island.networks):
                island.networks[index] = network.run_on(engine)
        return twin

    def train(self, mode: bool = True) -> "QuantizedModel":
        """Only ``train(False)``: a ValueError otherwise, since int8 weights have no gradient."""
        if mode:
            raise ValueError("mode: a quantized network cannot be trained; train the float model and quantize it again")
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of the networks, and of the parameters and buffers that are in none of them."""
        inside = [self.python.get_submodule(path) for path in self.islands]
        taken = {id(t) for module in inside for t in (*module.parameters(), *module.buffers())}
        rest = {id(t): t.nbytes for t in (*self.python.parameters(), *self.python.buffers()) if id(t) not in taken}
        return sum(rest.values()) + sum(network.nbytes for _, network in self.networks())

    def __repr__(self) -> str:
        lines = [f"{type(self.python).__name__}: {len(self.islands)} int8 networks, and Python between them"]
        for stop in self.stops:
            lines.append(f"  Python at {stop}")
        for path, network in self.networks():
            lines += ["", f"{path or 'the whole model'}:", repr(network)]
        return "\n".join(lines)
