"""Copies of the user's model for us to run, trace and keep, so that the model itself is never touched (STA-UNTOUCHED).
"""

import contextlib
import copy
import random
import warnings
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice
from logging import Logger
from types import CellType, FunctionType, GeneratorType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from quantspec.errors import UnsupportedError

# torch's own hooks that compute a weight from other parameters before each call: hook-style weight and spectral norm,
# pruning.
WEIGHT_HOOKS = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm", "torch.nn.utils.prune")

# What torch keeps in a module beside what its author does, and where a run is watched from.
TORCHS = {*vars(nn.Module()), "forward"} - {"training"}

# In which torch's recurrent layers list their weights anew before a call, where something computes them.
OF_RECURRENT = "_flat_weights", "_flat_weight_refs"

# What stays Python, or rather what torch compiled of it: nothing can be seen in it, nor put around it.
SCRIPTS = torch.jit.ScriptModule
SCRIPT = "it is TorchScript, which holds no Python code; pass the nn.Module that it was compiled from"

WRAPPERS = nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel


def inside(model: nn.Module) -> nn.Module:
    """The network in a wrapper that only passes calls on: DataParallel, AveragedModel, what torch.compile returned."""
    while True:
        if isinstance(model, SCRIPTS):
            raise UnsupportedError(
                f"model: {type(model).__name__} is TorchScript, which holds no Python code;"
                " pass the nn.Module that it was compiled from"
            )
        wrapped = model.module if isinstance(model, WRAPPERS) else before_compiling(model)
        if wrapped is model:
            return model
        model = wrapped


def before_compiling(model: nn.Module) -> nn.Module:
    """What torch.compile made a module of; a module that it did not make is itself."""
    if not isinstance(model, nn.Module) or isinstance(model, SCRIPTS):
        return model
    original = model.__dict__.get("_modules", {}).get("_orig_mod")
    return original if isinstance(original, nn.Module) else model


def own_copy(model: nn.Module, *, share: bool = False) -> nn.Module:
    """A model that shares nothing with the one given, or its parameters where ``share`` and nobody writes to them, as
    all modules are torch.nn's own. Weights that torch's own hooks compute are computed, and the
    hooks gone; what was compiled is as it was before."""
    twin = copied(model, share=share and all(map(torchs, model.modules())))
    with torch.no_grad():
        for module in list(twin.modules()):
            settle_weights(module)
            for name, child in () if isinstance(module, SCRIPTS) else module._modules.items():
                module._modules[name] = None if child is None else before_compiling(child)
    return twin


def torchs(module: nn.Module) -> bool:
    """Whether a module is one of torch.nn, without anything of the user's in it."""
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module).__module__.startswith("torch.nn.modules") and not hooked


def run_copy(model: nn.Module) -> nn.Module:
    """A copy that may be run or traced: what a forward keeps stays in it. It shares the parameters."""
    return copied(model, share=True)


def settle_weights(module: nn.Module) -> None:
    """Computes the weights that torch's own hooks would, and takes the hooks off."""
    hooks = module._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if type(hook).__module__ in WEIGHT_HOOKS]:
        hook = hooks.pop(key)
        module._forward_pre_hooks_with_kwargs.pop(key, None)
        hook(module, ())
        # What nothing computes any more is a parameter again.
        name = name_of(hook)
        weight, learns = module.__dict__.pop(name), any(p.requires_grad for p in module.parameters(recurse=False))
        module.register_parameter(name, nn.Parameter(weight.detach(), requires_grad=learns))
        for part in ("g", "v", "orig"):  # of which nothing is computed any more
            if (made_of := module._parameters.get(f"{name}_{part}")) is not None:
                made_of.requires_grad_(False)


def name_of(hook: Any) -> str:
    """Which weight a hook of torch's computes."""
    name: str = getattr(hook, "name", None) or getattr(hook, "_tensor_name")  # noqa: B009  # a hook has one of them
    return name


def by_hooks(model: nn.Module) -> dict[str, str]:
    """The weights that torch's own hooks compute, by their paths, and what computes them."""
    return {
        f"{path}.{name_of(hook)}".lstrip("."): type(hook).__module__
        for path, module in model.named_modules()
        for hook in module._forward_pre_hooks.values() if type(hook).__module__ in WEIGHT_HOOKS
    }  # fmt: skip


def copied(model: nn.Module, *, share: bool) -> nn.Module:
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, value in (*module._parameters.items(), *vars(module).items()):
            if type(value) in FIXED or name in TORCHS or not isinstance(value, torch.Tensor):
                continue
            # What a lazy module has is not made yet, and cannot be asked.
            if share and name in module._parameters and (is_lazy(value) or not value.is_inference()):
                memo[id(value)] = value
            elif not value.is_leaf:
                memo[id(value)] = value.detach().clone()  # torch refuses to copy what has a history
    return tree_copy(model, memo)


# Whose values nobody can write to: they are shared.
FIXED = frozenset((int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device, torch.Size, type))
# How far, through how many values, and into arrays of how many bytes something is gone in search of changes: models
# hold data sets and the like.
DEEPEST, MOST, LARGEST = 20, 10_000, 2**24
UNLIKE = count()  # stands for what is never known to be the same
EMPTY = CellType()  # of a variable that has no value yet
COPYING = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")


def tree_copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """What ``copy.deepcopy`` gives, in a fraction of its time: the tree of modules, one attribute at a time. An
    attribute that refuses to be copied is shared."""
    if id(module) in memo:
        twin: nn.Module = memo[id(module)]
        return twin
    kind = type(module)
    if isinstance(module, SCRIPTS):
        memo[id(module)] = twin = script_copy(module)
        return twin
    if not plain_state(kind):
        trial = dict(memo)
        with contextlib.suppress(Exception):
            twin = copy.deepcopy(module, trial)
            memo.update(trial)
            return twin
    twin = memo[id(module)] = kind.__new__(kind)
    state = vars(module)
    if isinstance(module, nn.RNNBase):  # which holds weak references to its weights, and makes them anew
        # By the class, as one with a parametrization refuses to give its state.
        state = nn.RNNBase.__getstate__(module)  # type: ignore[no-untyped-call]  # torch has no types there
    for name, value in state.items():
        if name == "_compiled_call_impl":
            continue  # which calls the module that it was compiled from
        if type(value) in FIXED:
            twin.__dict__[name] = value
        elif name in TORCHS and not value:  # of hooks, buffers and the like most modules have none
            twin.__dict__[name] = type(value)()
        else:
            twin.__dict__[name] = attribute_copy(name, value, memo)
    if isinstance(twin, nn.RNNBase):
        twin.__setstate__(vars(twin))  # type: ignore[no-untyped-call]  # nor there
    return twin


def script_copy(module: nn.Module) -> nn.Module:
    """A copy of TorchScript whose parameters are its own: torch's have a history, of which they are clones."""
    with torch.no_grad():
        twin: nn.Module = copy.deepcopy(module)
    for parameter, original in zip(twin.parameters(), module.parameters(), strict=True):
        parameter.requires_grad_(original.requires_grad)
    return twin


PLAIN: dict[type[nn.Module], bool] = {}


def plain_state(kind: type[nn.Module]) -> bool:
    """``has_plain_state``, asked once for each class."""
    if kind not in PLAIN:
        PLAIN[kind] = has_plain_state(kind)
    return PLAIN[kind]


def has_plain_state(kind: type[nn.Module]) -> bool:
    """Whether modules of a class are what stands in their ``__dict__``, for ``copy.deepcopy`` too.

    torch's own classes read older files by the methods of COPYING; recurrent layers make weak references anew; those
    with parametrizations refuse pickling, and copy what is in ``__dict__``.
    """
    methods = [getattr(kind, name) for name in COPYING if getattr(kind, name) is not getattr(nn.Module, name)]
    methods += [kind.__deepcopy__] if hasattr(kind, "__deepcopy__") else []
    return all(method.__module__.startswith(("torch.nn.modules.", "torch.nn.utils.parametrize")) for method in methods)


def attribute_copy(name: str, value: Any, memo: dict[int, Any]) -> Any:
    """A copy of what a module holds under a name; the value itself where that refuses."""
    if name == "_modules":
        return type(value)((key, m if m is None else tree_copy(m, memo)) for key, m in value.items())
    if isinstance(value, nn.Module):
        return tree_copy(value, memo)
    if type(value) is tuple and all(type(item) in FIXED for item in value):
        return value
    try:
        if name in ("_parameters", "_buffers") and type(value) is dict:
            twin = memo[id(value)] = {key: tensor_copy(tensor, memo) for key, tensor in value.items()}
            return twin
        return copy.deepcopy(value, memo)
    except Exception:
        return copy.copy(value) if isinstance(value, (dict, list, set)) else value


def tensor_copy(value: Any, memo: dict[int, Any]) -> Any:
    """What ``copy.deepcopy`` gives for a tensor, in half of its time for one without a class or attributes of its own:
    in a copy of its memory, which tensors of one memory have in common."""
    if value is None or id(value) in memo:
        return None if value is None else memo[id(value)]
    is_plain = type(value) is torch.Tensor and value.layout is torch.strided and value.device.type == "cpu"
    if not is_plain or value.requires_grad or value.is_quantized or value.is_conj() or value.is_neg() or vars(value):
        return copy.deepcopy(value, memo)
    storage = value.untyped_storage()
    if id(storage) not in memo and value.is_contiguous() and value.nbytes == storage.nbytes():
        memo[id(value)] = twin = value.clone()  # all of its memory, at a third of the price
        memo[id(storage)] = twin.untyped_storage()
        memo.setdefault(id(memo), []).append(storage)  # which keeps the id its own, as in copy.deepcopy
        return twin
    storage = copy.deepcopy(storage, memo)
    with torch.no_grad():
        memo[id(value)] = twin = value.new_empty(0).set_(storage, value.storage_offset(), value.shape, value.stride())
    return twin


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Runs something without gradients and without its warnings, and leaves the random state as it was."""
    with random_kept(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a model warns its user when its user runs it
        yield


@contextlib.contextmanager
def random_kept() -> Iterator[None]:
    """Leaves the random state as it was."""
    state, numpys, pythons = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        np.random.set_state(numpys)
        random.setstate(pythons)


def state_of(model: nn.Module) -> dict[tuple[str, str], Any]:
    """What a forward could have changed: buffers, parameters and attributes of all modules, as values that can be
    compared."""
    found: dict[tuple[str, str], Any] = {}
    seen: dict[int, Any] = {id(module): module for module in model.modules()}
    for path, module in model.named_modules():
        for name, value in (*module._parameters.items(), *module._buffers.items(), *vars(module).items()):
            if name not in TORCHS and not (name in OF_RECURRENT and isinstance(module, nn.RNNBase)):
                found[path, name] = fingerprint(value, seen)
    return found


def fingerprint(value: Any, seen: dict[int, Any], depth: int = 0) -> Any:
    """Equal when a value is the same and nothing in it was written to. ``seen``: what was gone into already."""
    if type(value) in FIXED or isinstance(value, (int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        return id(value), value._version
    if id(value) in seen or depth > DEEPEST or len(seen) > MOST:
        return id(value)
    seen[id(value)] = value
    inner = inside_of(value)
    return id(value) if inner is None else tuple(fingerprint(item, seen, depth + 1) for item in islice(inner, MOST))


def inside_of(value: Any) -> Iterable[Any] | None:
    """What of a value can change: its items, its attributes, or what it draws next; None for what is not gone into.
    Nothing that is made here is told apart by its identity."""
    if isinstance(value, np.ndarray):
        return None if value.nbytes > LARGEST else (*value.shape, value.tobytes())
    if isinstance(value, (bytearray, array)):
        return None if len(value) > LARGEST else (bytes(value),)
    if isinstance(value, torch.Generator):
        return (value.get_state().numpy().tobytes(),)
    if isinstance(value, random.Random):
        return (hash(value.getstate()),)
    if isinstance(value, np.random.Generator):
        return (repr(value.bit_generator.state),)
    if isinstance(value, np.random.RandomState):
        return (repr(value.get_state(legacy=False)),)
    # A logger notes which levels it was asked for.
    if isinstance(value, (type, ModuleType, Logger)):
        return None
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != EMPTY]
        return *cells, value.__defaults__, value.__kwdefaults__, value.__dict__
    if isinstance(value, MethodType):
        return value.__self__, value.__func__
    if isinstance(value, Iterator) and not hasattr(value, "__dict__"):
        return (rest_of(value),)
    if isinstance(value, dict):
        return chain(chain.from_iterable(value.items()), attributes_in(value))
    return chain(value if isinstance(value, (list, tuple, set, deque)) else (), attributes_in(value))


def attributes_in(value: Any) -> Iterator[Any]:
    """The attributes of a value, by their names or in slots of its class."""
    yield from chain.from_iterable(getattr(value, "__dict__", {}).items())
    for slot in slots_of(type(value)):
        with contextlib.suppress(AttributeError):  # of a slot that is empty
            yield slot.__get__(value)


SLOTS: dict[type, list[MemberDescriptorType]] = {}


def slots_of(kind: type) -> list[MemberDescriptorType]:
    """Where values of a class have attributes that are in no dict, asked once for each class."""
    if kind not in SLOTS:
        found = (item for each in kind.__mro__ for item in vars(each).items())
        # By names like __vectorcalloffset__ Python itself keeps things.
        own = ((name, what) for name, what in found if not (name.startswith("__") and name.endswith("__")))
        SLOTS[kind] = [what for _, what in own if isinstance(what, MemberDescriptorType)]
    return SLOTS[kind]


def rest_of(iterator: Iterator[Any]) -> Any:
    """What an iterator of Python's own says of what it will give."""
    if isinstance(iterator, GeneratorType):
        frame = iterator.gi_frame
        return None if frame is None else (frame.f_lasti, *frame.f_locals.values())
    if type(iterator).__reduce__ is object.__reduce__:  # it does not say, and may give anything
        return next(UNLIKE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.14 says that it copies some of them no longer
        return iterator.__reduce__()


def changed(before: dict[tuple[str, str], Any], after: dict[tuple[str, str], Any]) -> str | None:
    """The path of something that a run changed, or None."""
    for key in before.keys() | after.keys():
        # A NaN is no other value than itself.
        if before.get(key) is not after.get(key) and before.get(key) != after.get(key):
            return ".".join(part for part in key if part)
    return None


def cloned(tree: Any) -> Any:
    """Arguments with tensors of their own."""
    return over_tensors(tree, torch.Tensor.clone)


def over_tensors(tree: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """A tree of arguments with each tensor replaced."""
    kind = type(tree)
    if kind is torch.Tensor:
        return change(tree)
    if kind is tuple or kind is list:
        return kind(over_tensors(item, change) for item in tree)
    if kind is dict:
        return {key: over_tensors(item, change) for key, item in tree.items()}
    return torch.utils._pytree.tree_map_only(torch.Tensor, change, tree)


def attributes_of(model: nn.Module) -> dict[int, tuple[str, torch.Tensor, int]]:
    """Tensors that a model holds: parameters, buffers, attributes, and what is in lists and dicts; by identity, with
    their names and versions."""
    found: dict[int, tuple[str, torch.Tensor, int]] = {}
    for path, module in model.named_modules():
        for name, value in (*module._parameters.items(), *module._buffers.items(), *vars(module).items()):
            if name in TORCHS:
                continue
            for number, leaf in enumerate(held(value)):
                full = ".".join(part for part in (path, name) if part)
                found.setdefault(id(leaf), (full if leaf is value else f"{full}_{number}", leaf, leaf._version))
    return found


def held(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple, dict)):
        return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return []
