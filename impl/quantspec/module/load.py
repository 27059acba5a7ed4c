"""Networks from files that ``save`` wrote."""

import os
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from quantspec.capture import copies
from quantspec.capture.calls import CallPattern
from quantspec.capture.tracer import Stop
from quantspec.errors import FormatError, near_names, real_number, shown
from quantspec.ir.held import Held, changed
from quantspec.ir.held import held as held_codes
from quantspec.storage import file
from quantspec.storage.limits import Limits
from quantspec.storage.model import Model
from quantspec.surroundings import usual

from .coded import Coded, Key, codes_in, held
from .islands import QuantizedModel, modules_of
from .module import QuantizedModule
from .report import Report, Work


@near_names
@usual
def load(
    path: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    modules: Mapping[str, nn.Module] | None = None,
    engine: str = "auto",
    max_memory: float | None = None,
    max_work: float | None = None,
) -> QuantizedModule | QuantizedModel:
    """The network of a file that ``save`` wrote, bit for bit.

    Nothing in the file is executed, and everything in it is checked.

    Args:
        path: the path of the file.
        model: the float model, for a network with Python between its parts, which is not in the file. It is copied, and
            the copy takes the tensors of the file (STA-MODEL-STORED).
        modules: modules by path, for modules of classes that a file cannot name. Modules of ``model`` need not be
            given.
        engine: what runs the network: ``auto``, ``compiled``, ``torch`` or ``reference``.
        max_memory: the most bytes that the network may need (STA-LIMITS), which is checked before anything is
            allocated. None: a limit that follows from the size of the file.
        max_work: the most operations that a call may need, likewise.

    Raises:
        FormatError: for a file that is damaged, is not quantspec's, or is of a newer version.
        ValueError: for a model or module that is missing or does not fit, and an unknown engine.
        OSError: for a file that cannot be read.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if modules is not None and not isinstance(modules, Mapping):
        raise TypeError(f"modules: expected a dict from paths to modules, got {shown(modules)}")
    limits = Limits(limit(max_memory, "max_memory"), limit(max_work, "max_work"))
    own = None if model is None else copies.own_copy(copies.inside(model))
    given = dict(modules or {})
    if own is not None:
        given = dict(own.named_modules()) | given
    network, rows = file.load(path, given, model=own, limits=limits)
    report = None if rows is None else Report(tuple(Work(*row) for row in rows[0]), rows[1])
    if not isinstance(network, Model):
        return QuantizedModule(network, engine, report, own=True)
    assert own is not None
    same_modules(own, network)
    try:
        return assembled(own.eval(), network, engine, report)
    except Unfit as error:
        raise FormatError(f"{os.fspath(path)}: {error}") from error


def limit(value: object, argument: str) -> float | None:
    """A limit that the caller gave. TypeError and ValueError for what is no number from 0 on."""
    if value is None:
        return None
    if not (number := real_number(value, argument)) >= 0:
        raise ValueError(f"{argument}: expected a number of at least 0, got {shown(value)}")
    return number


class Unfit(ValueError):
    """A file whose parts do not belong together."""


def same_modules(own: nn.Module, network: Model) -> None:
    """ValueError unless a model has the modules, classes, hooks and tensors that the file was written for."""
    modules = modules_of(own)
    for mine, saved in zip(modules, network.modules):
        if mine != saved:
            raise ValueError(f"model: expected {described(saved)} as in the file, got {described(mine)}")
    if len(modules) != len(network.modules):
        raise ValueError(f"model: expected {len(network.modules)} modules as in the file, got {len(modules)}")
    # What a forward keeps as an attribute may have come or gone since.
    tensors = [(n, tensor) for n, module, leaf, tensor in held(own) if leaf not in vars(module) or n in network.coded]
    for name, tensor in tensors:
        if tensor.device.type != "cpu":
            raise ValueError(f"model: expected tensors on the CPU, {name} is on {tensor.device}")
    have = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors}
    want = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in network.state.items()}
    want |= {name: (torch.float32, tuple(Coded(weight).shape)) for name, weight in network.coded.items()}
    for name in [*want, *have]:
        if have.get(name) != want.get(name):
            raise ValueError(f"model: {name!r} is {form(have.get(name))}, in the file it is {form(want.get(name))}")


def described(module: tuple[str, str, int]) -> str:
    path, kind, hooks = module
    return f"{path or 'the model'} as a {kind}{f' with {hooks} hooks' if hooks else ''}"


def form(of: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return "missing" if of is None else f"{of[0]}{list(of[1])}"


def assembled(own: nn.Module, network: Model, engine: str, report: Report | None) -> QuantizedModel:
    """The model with the networks and the tensors of a file."""
    networks: dict[str, dict[CallPattern, nn.Module]] = {}
    layers: dict[str, nn.Module] = {}
    paths = {path for path, _, _ in network.modules}
    ours: dict[int, np.ndarray | Held] = {}
    for part in network.parts:
        part_network = QuantizedModule(part.program, engine)
        as_read, as_held = codes_in(part.program), codes_in(part_network.program)
        ours |= {id(held_codes(a, "codes")): held_codes(b, "codes") for (_, a), (_, b) in zip(as_read, as_held)}
        patterns = networks.setdefault(part.path, {}) if part.pattern is not None else {}
        twice = part.pattern in patterns or part.path in layers or (part.pattern is None and part.path in networks)
        if part.path not in paths or twice:
            raise Unfit(f"{part.path!r} is not a module, or has two networks for the same calls")
        if part.pattern is None:
            layers[part.path] = part_network
        else:
            patterns[part.pattern] = part_network
    own_scales = {id(weight.codes): weight.scale for part in network.parts for _, weight in codes_in(part.program)}
    coded: dict[Key, Coded] = {}
    made_of: dict[int, Coded] = {}  # a weight that the model has in two places is one
    for name, module, leaf, tensor in held(own):
        if name in network.coded:
            weight = network.coded[name]
            codes = ours.get(id(weight.codes), weight.codes)
            if (scale := own_scales.get(id(weight.codes))) is None:
                raise Unfit(f"the codes of {name!r} belong to no layer")
            same = np.array_equal(scale, weight.scale)
            whole = changed(weight, codes=codes, scale=scale if same else weight.scale)
            coded[id(module), leaf] = made_of.setdefault(id(tensor), Coded(whole))
        elif leaf in module._parameters:
            tensor.data = network.state[name]  # the same parameter wherever the model has it
        elif leaf in module._buffers:
            module._buffers[leaf] = network.state[name]
    for name, tensor in network.attributes.items():
        path, _, leaf = name.rpartition(".")
        if path not in paths or not leaf.isidentifier() or hasattr(nn.Module, leaf) or leaf in vars(nn.Module()):
            raise Unfit(f"{name!r} is not an attribute of a module")
        own.get_submodule(path).__dict__[leaf] = tensor
    for name, _, _, tensor in held(own):
        if name in network.state and not torch.equal(tensor, network.state[name]):
            raise ValueError(f"model: {name!r} is the same tensor as another one, but in the file they differ")
    stops = tuple(Stop(path, reason) for path, reason in network.stops)
    return QuantizedModel(own, networks, layers, stops, report, coded)
