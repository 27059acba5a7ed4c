"""A model whose parts are int8 networks: what ``quantize`` returns where Python of the user's stands between them."""

import copy
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from quantspec.capture import calls, copies
from quantspec.capture.calls import CallPattern, NotPlain, call_of, key_of, left_out
from quantspec.capture.tracer import Stop, refuse_compiled
from quantspec.errors import ShapeError, UnsupportedError, shown
from quantspec.ir.held import Held, changed, codes_shape, held
from quantspec.ir.program import Program
from quantspec.storage import file
from quantspec.storage import model as stored
from quantspec.surroundings import usual

from . import coded as coded_weights
from . import modes, size, summary
from .module import QuantizedModule
from .report import Report
from .state import check_forms, forms, tensors_of

UNSEEN = "it is called with arguments or sizes that did not occur in calibration"
MOST = 64  # calls that an island remembers


class Island(nn.Module):
    """Computes what a module of the model did, by the network of the pattern by which it is called. It stands in that
    module as its ``forward``."""

    __wrapped__: Callable[..., Any]

    def __init__(
        self, path: str, forward: Callable[..., Any], networks: Mapping[CallPattern, nn.Module], trained: bool = False
    ):
        """``trained``: gradients and autocast are those of whoever trains the networks."""
        super().__init__()
        self.path, self.trained = path, trained
        self.patterns = [pattern.identity() for pattern in networks]
        self.known: dict[Any, tuple[int, tuple[int, ...]]] = {}
        self.networks = nn.ModuleList(networks.values())
        self.__dict__["__wrapped__"] = forward  # not registered: a module's own method, whose signature is the island's
        if not trained:
            self.eval()
        self.unseen = 0

    def network(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[nn.Module | None, list[torch.Tensor]]:
        """The network for a call, and the tensors that it takes. How calls of plain arguments come out is kept."""
        key, given = key_of(args, kwargs)
        index, order = self.known.get(key, (-1, ()))
        if index >= 0:
            return self.networks[index], [given[place] for place in order]
        try:
            pattern, tensors = call_of(self.__wrapped__, args, kwargs)
        except (NotPlain, TypeError):
            return None, []
        index = next((number for number, existing in enumerate(self.patterns) if existing == pattern), -1)
        if index < 0:
            return None, []
        places = {id(value): place for place, value in enumerate(given)}
        found = dict.fromkeys(map(id, tensors))
        if key is not None and len(self.known) < MOST and len(found) == len(tensors) and found.keys() <= places.keys():
            self.known[key] = index, tuple(places[name] for name in found)
        return self.networks[index], tensors

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        network, tensors = self.network(args, kwargs)
        if not self.trained and (reason := modes.why_float(self.__wrapped__, tensors)) is not None:
            return self.in_float(reason, args, kwargs)
        if network is not None:
            try:
                return network(*tensors) if self.trained else modes.computed(self.__wrapped__, network, tensors)
            except UnsupportedError:  # a RuntimeError, too
                raise
            except TypeError:
                if (reason := calls.unusual(tensors)) is None:
                    raise
                return self.in_float(reason, args, kwargs)
            except (ShapeError, RuntimeError, IndexError):
                pass  # the model's own error, if it has one, is for whoever called
        return self.in_float(UNSEEN, args, kwargs)

    def in_float(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the module itself gives."""
        self.unseen += 1
        if self.unseen == 1:
            warnings.warn(f"module {self.path!r}: {reason}; this call runs in float", stacklevel=3)
        return self.__wrapped__(*args, **kwargs)


class LayerIsland(nn.Module):
    """Computes what a layer did, for whatever arguments it is called with. ``weights``: the names of the layer's
    tensors that are held as codes."""

    __wrapped__: Callable[..., Any]

    def __init__(self, path: str, network: nn.Module, forward: Callable[..., Any]):
        super().__init__()
        self.networks = nn.ModuleList([network])
        self.path, self.replaced, self.warned = path, False, False
        self.weights: tuple[str, ...] = ()
        self.__dict__["__wrapped__"] = forward
        self.eval()

    def watch(self) -> None:
        """Knows from now on when somebody gives the layer other weights."""
        attributes = vars(getattr(self.__wrapped__, "__self__", self))
        self.weights = tuple(name for name, value in attributes.items() if isinstance(value, coded_weights.Coded))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        for name in self.weights:
            if type(vars(self.__wrapped__.__self__).get(name)) is not coded_weights.Coded:  # type: ignore[attr-defined]
                if not self.replaced:
                    self.replaced = True
                    warnings.warn(f"layer {self.path!r} was given another {name}; it runs in float", stacklevel=2)
                return self.__wrapped__(*args, **kwargs)
        given = (*args, *kwargs.values())
        if (reason := modes.why_float(self.__wrapped__, given)) is not None:
            return self.in_float(reason, args, kwargs)
        try:
            return modes.computed(self.__wrapped__, self.networks[0], args, kwargs)
        except ShapeError:  # whoever called gets the layer's own error
            return self.__wrapped__(*args, **kwargs)
        except TypeError:
            if (reason := calls.unusual(given)) is None:
                raise
            return self.in_float(reason, args, kwargs)

    def in_float(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the layer itself gives."""
        if not self.warned:
            self.warned = True
            warnings.warn(f"layer {self.path!r}: {reason}; this call runs in float", stacklevel=3)
        return self.__wrapped__(*args, **kwargs)


def attach(
    model: nn.Module, networks: Mapping[str, Mapping[CallPattern, nn.Module]], *, trained: bool = False
) -> dict[str, Island]:
    """Puts networks in place of the forwards of modules of a model of ours."""
    islands = {}
    for path, patterns in networks.items():
        module = model.get_submodule(path)
        islands[path] = module.__dict__["forward"] = Island(path, module.forward, patterns, trained)
    return islands


def place(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, LayerIsland]:
    """Puts networks in the place of layers of a model of ours."""
    islands = {}
    for path, network in layers.items():
        module = model.get_submodule(path)
        islands[path] = module.__dict__["forward"] = LayerIsland(path, network, module.forward)
    return islands


class QuantizedModel(nn.Module):
    """A copy of the user's model in which parts are int8 networks. Calling it takes and gives what the model did; other
    attributes are the model's.

    ``islands`` are the parts by their paths. Between them the model's own Python runs as it was.
    """

    def __init__(
        self, model: nn.Module, networks: Mapping[str, Mapping[CallPattern, nn.Module]],
        layers: Mapping[str, nn.Module], stops: tuple[Stop, ...] = (), report: Report | None = None,
        coded: Mapping[coded_weights.Key, coded_weights.Coded] | None = None,
    ):  # fmt: skip
        """``networks`` by path and pattern of the call, ``layers``: those in the place of layers, called in any way;
        ``coded``: the weights that are held as codes, which are found where they are not given."""
        super().__init__()
        self.report, self.stops = report, stops
        self.python = model
        self.__dict__["islands"] = attach(model, networks) | place(model, layers)
        programs = {path: [network.program for network in self.at(path)] for path in self.islands}
        if coded is None:
            coded_weights.keep_codes(model, programs)
        else:
            coded_weights.put(model, coded)
        for island in self.islands.values():
            if isinstance(island, LayerIsland):
                island.watch()
        self.__dict__["biases"] = coded_weights.keep_biases(model, programs)  # which the networks hold
        super().train(False)

    def at(self, path: str) -> list[QuantizedModule]:
        """The networks at a path."""
        return [network for network in self.islands[path].networks if isinstance(network, QuantizedModule)]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_modules", {}).get("python")
            if model is None or name.startswith("__"):
                raise
            return getattr(model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        model = self.__dict__.get("_modules", {}).get("python")
        of_model = model is not None and any(name in names for names in own_names(model))
        if of_model and not hasattr(type(self), name) and not any(name in names for names in own_names(self)):
            setattr(model, name, value)  # which its Python reads
        else:
            super().__setattr__(name, value)

    @usual
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output. Inputs are not modified."""
        with torch.no_grad():
            if "" not in self.islands:
                args, kwargs = copies.cloned((args, kwargs))
            try:
                return self.python(*args, **kwargs)
            except UnsupportedError:
                raise
            except Exception as error:
                refuse_compiled(error)
                raise

    def networks(self) -> Iterator[tuple[str, QuantizedModule]]:
        """The int8 networks, with the paths of the modules that they stand for."""
        return ((path, network) for path in self.islands for network in self.at(path))

    def whole(self) -> QuantizedModule | None:
        """The network that is the whole model, where one is."""
        hooks = self.python._forward_hooks or self.python._forward_pre_hooks
        alone = list(self.islands) == [""] and len(self.at("")) == 1 and not hooks
        return self.at("")[0] if alone else None

    @property
    def engine(self) -> str:
        """The name of the engine that runs the networks."""
        return next((network.engine for _, network in self.networks()), "auto")

    @property
    def program(self) -> Any:
        """The network as plain data, where the whole model is one. Raises UnsupportedError, naming the Python,
        otherwise."""
        if (whole := self.whole()) is not None:
            return whole.program
        between = "; ".join(map(str, self.stops))
        if not between:
            kind = "hooks" if list(self.islands) == [""] and len(self.at("")) == 1 else "the forward"
            between = f"{kind} of {type(self.python).__name__} ({place_of(self.python)})"
        raise UnsupportedError(
            f"model: expected a single network, got Python around {len(list(self.networks()))} of them: {between}"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one ``.safetensors`` file, which ``quantspec.load`` reads: the network where the whole model is one
        that is called with tensors alone, otherwise all networks and the tensors of everything else, but no Python; the
        model is given again to ``load``.
        """
        report = None if self.report is None else self.report.as_tuples()
        whole, island = self.whole(), self.islands.get("")
        fixed = left_out(island.__wrapped__, island.patterns[0]) if isinstance(island, Island) else ()
        if whole is None or fixed is None:
            file.save(self.stored(), path, report)
        else:
            file.save(replace(whole.program, fixed=fixed), path, report)

    def stored(self) -> "stored.Model":
        """What a file holds of a model of parts."""
        parts = []
        for path, island in self.islands.items():
            patterns = island.patterns if isinstance(island, Island) else [None]
            parts += [stored.Part(path, pattern, n.program) for pattern, n in zip(patterns, self.at(path), strict=True)]
        state: dict[str, torch.Tensor] = {}
        attributes: dict[str, torch.Tensor] = {}
        coded = {}
        for name, module, leaf, tensor in coded_weights.held(self.python):
            if isinstance(tensor, coded_weights.Coded):
                coded[name] = tensor.weight
            else:
                (attributes if leaf in vars(module) and name not in self.biases else state)[name] = tensor
        stops = tuple((stop.path, stop.reason) for stop in self.stops)
        modules = modules_of(self.python)
        return stored.Model(named(type(self.python)), modules, state, attributes, coded, tuple(parts), stops)

    @usual
    def get_extra_state(self) -> dict[str, Any]:
        """For ``state_dict``: the networks', the scales of weights that are held as codes, and tensors that are plain
        attributes."""
        networks = {f"{path}#{index}": n.state_dict() for path in self.islands for index, n in enumerate(self.at(path))}
        scales, others = {}, {}
        for name, module, leaf, tensor in coded_weights.held(self.python):
            if isinstance(tensor, coded_weights.Coded):
                scales[name] = torch.from_numpy(tensor.weight.scale.copy())
            elif leaf in vars(module):
                others[name] = tensor.detach().clone()
        return {"networks": networks, "scales": scales, "tensors": others}

    @usual
    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restores the result of ``get_extra_state``. Raises ValueError for the state of another model."""
        self.check_state(state)
        before = [array for _, network in self.networks() for array in codes_of(network.program)]
        for path in self.islands:
            for index, network in enumerate(self.at(path)):
                network.load_state_dict(state["networks"][f"{path}#{index}"])
        after = [array for _, network in self.networks() for array in codes_of(network.program)]
        moved = {id(old): new for old, new in zip(before, after, strict=True)}
        renewed: dict[coded_weights.Key, coded_weights.Coded] = {}
        made_of: dict[int, coded_weights.Coded] = {}  # a weight that the model has in two places is one
        for name, module, leaf, tensor in coded_weights.held(self.python):
            if isinstance(tensor, coded_weights.Coded):
                codes, scale = moved[id(held(tensor.weight, "codes"))], state["scales"][name].numpy().copy()
                weight = changed(tensor.weight, codes=codes, scale=scale)
                renewed[id(module), leaf] = made_of.setdefault(id(tensor), coded_weights.Coded(weight))
            elif leaf in vars(module):
                module.__dict__[leaf] = state["tensors"][name].clone()
        coded_weights.put(self.python, renewed)

    def check_state(self, state: object) -> None:
        """ValueError for what is no ``get_extra_state`` of a model of this structure, before any of it is taken."""
        have = self.get_extra_state()
        if not isinstance(state, Mapping) or have.keys() != state.keys() or not isinstance(state["networks"], Mapping):
            raise ValueError(f"state_dict: expected the {', '.join(have)} of this model, got {shown(state)}")
        given, networks = state["networks"], have["networks"]
        if set(networks) != set(given):
            odd = sorted(set(networks) ^ set(given), key=str)[0]
            raise ValueError(f"state_dict: expected the networks of this model, but {odd!r} is in only one of them")
        if others := [each for each in given.values() if not isinstance(each, Mapping)]:
            raise ValueError(f"state_dict: expected the networks of this model, got {shown(others[0])}")
        for path in self.islands:
            for index, network in enumerate(self.at(path)):
                all_of_it = given[f"{path}#{index}"]
                network.check_arrays(all_of_it.get("_extra_state"))
                parts, own = map(tensors_of, (all_of_it, network.float_parts.state_dict(prefix="float_parts.")))
                check_forms(parts, forms(own), "float parts of this network")
        for kind in ("scales", "tensors"):
            check_forms(state[kind], forms(have[kind]), f"{kind} of this model")

    def run_on(self, engine: str) -> "QuantizedModel":
        """The same model with its networks on another engine."""
        twin = copy.deepcopy(self)
        for island in twin.islands.values():
            for index, network in enumerate(island.networks):
                island.networks[index] = network.run_on(engine)
        twin.share_codes()
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch has no types there
        self.share_codes()

    def share_codes(self) -> None:
        """Has weights that are held as codes hold those of the networks, which may hold them in another way by now."""
        weights = [weight for _, network in self.networks() for _, weight in coded_weights.codes_in(network.program)]
        held_codes = {id(held(weight, "codes")) for weight in weights}
        for *_, tensor in coded_weights.held(self.python):
            if isinstance(tensor, coded_weights.Coded) and id(held(tensor.weight, "codes")) not in held_codes:
                shape, codes = codes_shape(tensor.weight, "codes"), tensor.weight.codes
                near = (weight for weight in weights if codes_shape(weight, "codes") == shape)
                same = next(weight for weight in near if np.array_equal(weight.codes, codes))
                tensor.weight = changed(tensor.weight, codes=held(same, "codes"))

    def train(self, mode: bool = True) -> "QuantizedModel":
        """Accepts ``train(False)`` only: int8 weights have no gradient."""
        if mode:
            raise ValueError(
                "mode: a quantized network cannot be trained; train the float model, or the result of prepare_qat"
            )
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of the networks, and of every other tensor that the copy of the model holds: weights that are codes
        (STA-CODED) take none, or those of a scale of their own."""
        weights = (weight for _, network in self.networks() for _, weight in coded_weights.codes_in(network.program))
        scales = {id(held(weight, "codes")): weight.scale for weight in weights}
        total = sum(network.nbytes for _, network in self.networks())
        own = (item for item in coded_weights.held(self.python) if item[0] not in self.biases)
        tensors = {id(tensor): tensor for *_, tensor in own}
        for tensor in tensors.values():
            if not isinstance(tensor, coded_weights.Coded):
                total += tensor.nbytes
            elif not np.array_equal(tensor.weight.scale, scales[id(held(tensor.weight, "codes"))]):
                total += tensor.weight.scale.nbytes
        return total

    def __repr__(self) -> str:
        return self.table()

    def table(self, *, wide: bool = False) -> str:
        """What each layer became and what Python is between the networks, as text of 79 columns; ``wide``: with the
        grids of weights, in as many as it takes."""
        networks = list(self.networks())
        count = f"{len(networks)} int8 network{'s' * (len(networks) != 1)}"
        title = f"{type(self.python).__name__}: {count} and Python, engine {self.engine}"
        parts = [summary.Part(path, network.program, network.engine, network.engines) for path, network in networks]
        stops = [(stop.path or "the model", stop.reason) for stop in self.stops]
        return summary.network_table(title, parts, stops, self.nbytes, self.resident_nbytes, wide=wide)

    @property
    def resident_nbytes(self) -> int:
        """Bytes that it takes in memory (SIZ-HELD), without what it works in."""
        return self.nbytes + sum(size.held_bytes(network.program) for _, network in self.networks())


def own_names(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Where a module has what it holds, by name."""
    return vars(module), module._parameters, module._buffers, module._modules


def codes_of(program: Program) -> list[np.ndarray | Held]:
    return [held(weight, "codes") for _, weight in coded_weights.codes_in(program)]


def named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def modules_of(model: nn.Module) -> tuple[tuple[str, str, int], ...]:
    """The modules of a model: path, class, and how many hooks run around it."""
    return tuple(
        (path, named(type(module)), len(module._forward_hooks) + len(module._forward_pre_hooks))
        for path, module in model.named_modules()
    )


def place_of(model: nn.Module) -> str:
    """File and line of a model's class."""
    try:
        _, line = inspect.getsourcelines(type(model))
        return f"{inspect.getsourcefile(type(model))}, line {line}"
    except (OSError, TypeError):
        return named(type(model))
