"""Random models, written as Python source out of pieces that tracing gets wrong or refuses.

All values of a model have one shape, so that any piece goes behind any other: [rows, 8], or [images, 8, height, width].
A piece is some lines with names in braces, which ``Names`` fills in when the lines are written.
"""

import hashlib
import linecache
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

CHANNELS = 8
HEAD = '''import contextlib
import functools
import typing
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

warnings.simplefilter("ignore", FutureWarning)


class Pair(typing.NamedTuple):
    first: torch.Tensor
    second: typing.Any


@dataclass
class Result:
    value: torch.Tensor
    extra: typing.Any = None


class Symmetric(nn.Module):
    def forward(self, w):
        return (w + w.flip(0)) * 0.5


class Standardized(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 0.5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Doubled(nn.Linear):
    def forward(self, x, twice=False):
        y = super().forward(x)
        return y * 2 if twice else y


def passed_on(function):
    @functools.wraps(function)
    def wrapped(self, *args, **kwargs):
        return function(self, *args, **kwargs)

    return wrapped


def normalization(kind):
    norm = kind(8)
    norm.running_mean.normal_(0, 0.2)
    norm.running_var.uniform_(0.25, 1)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm
'''

# {v} a new value, {t} another new name, {a} and {b} values, {own} a value that may be written to, {layer} a layer,
# {part} a module of one of the classes above, {weight} and {bias} of a functional layer, {buffer}, {n} a new number.
ANY = (
    "{v} = {layer}({a})",
    "{v} = F.relu({a})",
    "{v} = {a} + {b}",
    "{v} = {layer}({a}) + {a}",
    "{v} = {part}({a}){field}",
    "{v} = {a} * torch.sigmoid({b})",
    "{v} = torch.tanh({a})",
    "{v} = {norm}({a})",
    "{v} = F.dropout({layer}({a}), 0.5, self.training)",
    "{v} = nn.functional.gelu({a})",
    # views and joins
    "{v} = {a}.view({a}.shape[0], 2, -1).flip(1).reshape({a}.shape)",
    "{v} = {a}.flatten(1).unflatten(1, {a}.shape[1:])",
    "{v} = {a}.transpose(0, 1).contiguous().transpose(0, 1) * 1.0",  # one row would be no copy, but an alias
    "{v} = torch.cat([{a}[:, :4], {b}[:, 4:]], 1)",
    "{v} = torch.cat({a}.chunk(2, 1)[::-1], dim=1)",
    "{v} = torch.stack([{a}, {b}]).mean(0)",
    "{t} = [{a}, {b}]\n{v} = sum({t}) / len({t})",
    "{t} = {{'left': {a}, 'right': {b}}}\n{t}['left'] = {layer}({t}['left'])\n{v} = {t}['left'] - {t}['right']",
    # writes in place, through views and aliases
    "{own}[:, :4].mul_(0.5)\n{v} = {own}",
    "{t} = {own}[:, 2:]\n{own}.mul_(0.75)\n{v} = torch.cat([{own}[:, :2], {t}], 1)",
    "{t} = {own}\n{t} += 0.5\n{v} = {own}",
    "{own}[:, 1:3] = 0.25\n{v} = {own}",
    "{own}[:, 0] = {own}[:, 1]\n{v} = {own}",
    "F.relu({own}, inplace=True)\n{v} = {own}",
    "{own}.add_({b}).clamp_(-2, 2)\n{v} = {own}",
    "{t} = {own}.view({own}.shape[0], -1)\n{t}.mul_(0.5)\n{v} = {own} + {b}",
    "{t} = torch.zeros_like({a})\n{t}[:, :4] = {a}[:, 4:]\n{v} = {layer}({t})",
    "{v} = torch.empty_like({a}).copy_({a})",
    "{t} = {layer}({own})\n{own}.zero_()\n{v} = {t} + {own}",
    "for {t} in {own}.split(4, 1):\n    {t}.mul_(0.5)\n{v} = {own}",
    # state
    "self.last = {a}\n{v} = {layer}(self.last)",
    "self.kept.append({a})\n{v} = self.kept[-1] * 0.5",
    "if 'table' not in self.cache:\n    self.cache['table'] = torch.linspace(0, 1, 8)\n"
    "{v} = {a} + self.cache['table'].sum()",
    "{buffer}.add_(0.125)\n{v} = {a} + {buffer}.mean()",
    "{v} = {a} + 0.1 * {buffer}.mean()",
    "{v} = {a} * {buffer}.reshape(-1)[0] + {buffer}.std()",
    "self.calls = self.calls + 1\n{v} = {a} * 0.5 ** min(self.calls, 2)",
    # flags and optional arguments
    "{v} = {layer}({a}) if flag else {a} * 0.5",
    "{v} = {a} if bias is None else {a} + bias",
    "{v} = {layer}({a} * scale)",
    "assert {a}.dim() == {dims} and {a}.shape[1] == 8, 'shape'\n{v} = {layer}({a})",
    "if not isinstance({a}, torch.Tensor):\n    raise TypeError('a tensor')\n{v} = {layer}({a})",
    "if {a}.shape[1] != 8:\n    raise ValueError(f'channels: {{{a}.shape[1]}}')\n{v} = {a}",
    "{t} = {a}.shape\n{v} = {layer}({a}) * torch.ones(*{t})",
    # loops, and layers called again
    "{v} = torch.stack([{layer}({t}[None])[0] for {t} in {a}]) if len({a}) else {a}",
    "{v} = {a}\nfor {t} in range({a}.size(1) // 4):\n    {v} = {layer}({v}) * (1 + {t}) / 2",
    "{v} = {a}\nfor {t} in ({layer}, torch.relu, {layer}):\n    {v} = {t}({v})",
    "{v} = {layer}(torch.cat([{a}, {b}]))[: {a}.shape[0]]",
    "{t} = {layer}\n{v} = {t}({t}({a}) * 0.5)",
    "{t} = {a}.size(0) // 2\n{v} = torch.cat([{layer}({a}[:{t}]), {layer}({a}[{t}:])])",
    "{v} = {layer}({a}[:1]).expand_as({a}) + {a}",
    # Python that decides
    "{v} = {layer}({a}) if {a}.shape[0] > 3 else {a} * 0.5",
    "{v} = {layer}({a}) if bool(x.sum() > 0) else {layer2}({a})",
    "if (x.abs() < 1e6).all():\n    {v} = {layer}({a})\nelse:\n    {v} = {a}",
    "{v} = {layer}({a}) * (1 + 0.1 * np.tanh(x.sum().item()))",
    "try:\n    {v} = self.missing({a})\nexcept AttributeError:\n    {v} = {layer}({a})",
    "try:\n    {v} = {layer}({a})\nexcept RuntimeError:\n    {v} = {a}\nfinally:\n    {t} = None",
    "try:\n    {t} = {layer}({a}.flatten()[:3])\nexcept RuntimeError:\n    {t} = {a}\n{v} = {layer}({t})",
    "with torch.no_grad(), contextlib.suppress(KeyError):\n    {v} = {layer}({a})",
    "{t} = lambda z: {layer}(z) + {b}\n{v} = {t}({a})",
    "def {t}(z, again=0):\n    return {t}(z * 0.5, again - 1) if again else {layer}(z)\n\n{v} = {t}({a}, 1)",
    "{v} = functools.reduce(lambda p, q: p + {layer}(q), [{a}, {b}])",
    "{t} = {{'input': {a}}}\n{v} = {layer}(**{t})",
    "{t} = dict(enumerate([{a}, {b}]))\n{v} = {layer}({t}[0]) + {t}[1]",
    "{v} = torch.from_numpy(np.tanh({a}.detach().numpy()))",
    "{v} = {layer}(torch.tensor(({a}.detach() * 0.5).tolist()).reshape({a}.shape))",
    "{v} = {a} + 0.0 * torch.rand_like({a})",
    "{v} = getattr(torch, 'relu')({layer}({a}))",
    "{v} = {a}.detach().clone().requires_grad_(False)",
    "{v} = {a}.where({a} > 0, {b})",
    "{v} = {a}.masked_fill({a} > 1, 1.0)",
    "{v} = {a}.clone()\n{v}[{v} < 0] *= 0.5",
    # what libraries write
    "{v} = {a}\nfor {t} in {modules}:\n    {v} = {t}({v})",
    "{v} = {a}\nfor {t}, block in enumerate({modules}):\n    {v} = block({v}) if {t} else {v} + block({v})",
    "{t} = []\nfor block in {modules}[:2]:\n    {t}.append(block({a}))\n{v} = torch.stack({t}).amax(0)",
    "{v} = {modules}[-1]({a}) - {modules}[0]({b})",
    "{t} = {named}\n{v} = sum({t}[key]({a}) for key in {t}) / len({t})",
    "{v} = {named}['b'](x={a}) if 'b' in {named} else {a}",
    "{t} = {named}\n{v} = torch.cat([{t}[key]({a})[:, :4] for key in sorted({t}.keys())], 1)",
    "{v} = getattr(self, '{layer}'.partition('.')[2])({a})",
    "{v} = {layer}({a}) if hasattr(self, 'kept_for_later') or not self.training else {a}",
    "{v} = checkpoint({layer}, {a}, use_reentrant=False)",
    "{v} = functools.partial(torch.add, {layer}({a}), alpha=0.5)({b})",
    "if ({t} := {layer}({a})) is not None:\n    {v} = {t} * 0.5",
    "{t} = {a} if torch.is_grad_enabled() or {a}.requires_grad else {a}.contiguous()\n{v} = {layer}({t})",
    "if torch.jit.is_scripting() or torch.jit.is_tracing():\n    {v} = {a}\nelse:\n    {v} = {layer}({a})",
    "{t} = torch.arange({a}.shape[1], device={a}.device, dtype={a}.dtype)\n{v} = {layer}({a} * ({t}.sum() / 28))",
    "{t} = {a}.new_zeros({a}.shape)\n{v} = {layer}({a} + {t}).type_as({a})",
    "{t}, *_ = {a}.shape\n{v} = {layer}({a}.reshape({t}, *{a}.shape[1:]))",
    "{t}, channels = {a}.size()[:2]\n{v} = {layer}({a}) * (channels / 8)",
    "with torch.autocast('cpu', enabled=False):\n    {v} = {layer}({a}.float())",
    "{t} = {a}.unbind(1)\n{v} = torch.stack({t}[4:] + {t}[:4], dim=1)",
    "{v} = {layer}({a}.to(next(self.parameters()).dtype))",
    "{t} = iter([{layer}, torch.tanh])\n{v} = next({t})({a})\n{v} = next({t})({v})",
    "{v} = {a}\nwhile {v} is {a}:\n    {v} = {layer}({a})",
    "{t} = {layer}({a}), {b}\n{v} = max({t}, key=lambda one: one.dim()) - {t}[1] * 0.5",
    "{v} = nn.Sequential({layer}, nn.Tanh())({a})",
    "{v} = self.step({layer}, {a}, scale_by=0.5)",
    "{v} = type(self).apart({layer}({a}))",
    "{v} = {layer}({a}).squeeze(0).reshape({a}.shape).clamp(min=-3)",
    "{v} = torch.lerp({a}, {layer}({b}), 0.25)",
    "{v} = {prelu}({layer}({a}))",
    "{v} = {layer}({a}) + {drop}({b})",
)  # fmt: skip
ROWS = (
    "{v} = F.linear({a}, {weight}, {bias})",
    "{v} = {a} @ {weight}.t() + {bias}",
    "{v} = torch.addmm({bias}, {a}, {weight})",
    "{v} = F.linear(input={a}, weight={weight} * 2)",
    "{v} = F.layer_norm({a}, (8,), {bias})",
    "{v} = {layer}({a}.unsqueeze(1)).squeeze(1)",
    "{v} = {layer}({a}.T.contiguous().T)",
    "{v} = torch.softmax({a}, -1) * 2",
    "{t}, _ = self.attention({a}[None], {a}[None], {a}[None])\n{v} = {t}[0]",
    "{v} = torch.einsum('nc,oc->no', {a}, {weight})",
    "{v} = {doubled}({doubled}({a}), twice=True)",
    "{v} = F.batch_norm({a}, {buffer8}, {buffer8} + 1, {bias})",
    "{v} = F.prelu({layer}({a}), {bias})",
    "{v} = {layer}({a}.repeat_interleave(2, 0)[::2])",
    "{t} = {layer}({a})[:, None].expand(-1, 3, -1)\n{v} = {layer}({t}).mean(1)",
    "{v} = torch.baddbmm({a}[None], {b}[None], {weight}[None])[0]",
    "{t} = ({a}[None] @ {b}[None].mT).softmax(-1)\n{v} = {layer}(({t} @ {a}[None])[0])",
)
IMAGES = (
    "{v} = F.conv2d({a}, {weight}, {bias}, padding=1)",
    "{v} = F.conv2d({a}, {weight} * 0.5, padding='same')",
    "{v} = {a} * torch.sigmoid({layer}({a}.mean((2, 3), keepdim=True)))",
    "{v} = F.interpolate(F.max_pool2d({a}, 2), size={a}.shape[2:])",
    "{v} = F.adaptive_avg_pool2d({a}, 1).expand_as({a})",
    "{v} = F.pad({a}, (1, 0, 0, 1))[..., 1:, :-1]",
    "{v} = {a}.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)",
    "{t} = {a}.shape[2] // 2\n{v} = torch.cat([{layer}({a}[:, :, :{t}]), {a}[:, :, {t}:]], 2)",
    "{v} = F.batch_norm({a}, {buffer8}, {buffer8} + 1, {bias})",
    "{v} = {layer}({a}.to(memory_format=torch.channels_last))",
    "{v} = F.interpolate({layer}(F.avg_pool2d({a}, 2)), scale_factor=2, mode='bilinear')",
    "{v} = F.interpolate({layer}({a}[..., ::2]), size={b}.shape[-2:], mode='bilinear', align_corners=True) + {b}",
    "{v} = {layer}(F.interpolate({a}, scale_factor=0.5, mode='bilinear', align_corners=False)).repeat(1, 1, 2, 2)",
    "{v} = F.pixel_shuffle(F.pixel_unshuffle({layer}({a}), 2), 2)",
    "{t} = F.unfold({a}, 1)\n{v} = {layer}(F.fold({t}, {a}.shape[2:], 1))",
    "{t} = {a}.flatten(2).transpose(1, 2)\n{v} = {layer}({t}.transpose(1, 2).reshape({a}.shape))",
    "{v} = {layer}({a}) * {b}.amax((2, 3), keepdim=True).sigmoid()",
    "n, c, h, w = {a}.shape\n{v} = {layer}({a}.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))",
    "{v} = {layer}(F.instance_norm({a}, weight={bias}.abs() + 0.5))",
)
LAYERS = {
    "rows": (
        "nn.Linear(8, 8)",
        "nn.Linear(8, 8, bias=False)",
        "nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8))",
        "nn.utils.weight_norm(nn.Linear(8, 8))",
        "parametrizations.weight_norm(nn.Linear(8, 8))",
        "parametrizations.spectral_norm(nn.Linear(8, 8))",
        "parametrize.register_parametrization(nn.Linear(8, 8), 'weight', Symmetric())",
        "nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.ReLU())",
        "nn.Sequential(nn.Identity(), nn.Linear(8, 8))",
    ),
    "images": (
        "nn.Conv2d(8, 8, 3, padding=1)",
        "nn.Conv2d(8, 8, 1, bias=False)",
        "nn.Conv2d(8, 8, 3, padding=1, groups=8)",
        "nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))",
        "nn.utils.weight_norm(nn.Conv2d(8, 8, 1))",
        "parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))",
        "parametrizations.spectral_norm(nn.Conv2d(8, 8, 1))",
        "Standardized(8, 8, 3, padding=1)",
        "nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, padding_mode='reflect'), nn.Hardswish())",
    ),
}  # fmt: skip
NORMS = {
    "rows": ("normalization(nn.BatchNorm1d)", "nn.LayerNorm(8)", "nn.GroupNorm(2, 8)"),
    "images": ("normalization(nn.BatchNorm2d)", "nn.GroupNorm(2, 8)", "nn.InstanceNorm2d(8)"),
}
HOOKS = (
    "register_forward_hook(lambda module, inputs, output: output * 0.5 + 0.25)",
    "register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0.5, *inputs[1:]) if inputs else None)",
    "register_forward_hook(lambda module, inputs, output: output.mul_(0.5))",
    "register_forward_hook(lambda module, inputs, output: setattr(module, 'seen', output))",
    "register_forward_pre_hook(lambda module, inputs, named: (inputs, named), with_kwargs=True)",
    "register_forward_hook(lambda module, inputs, named, output: output + 0.125, with_kwargs=True)",
    "register_full_backward_hook(lambda module, given, wanted: None)",
)
METHODS = [
    "", "    def step(self, layer, *values, scale_by):", "        return layer(*values) * scale_by", "",
    "    @staticmethod", "    def apart(value):", "        return value - value.mean(0, keepdim=True)",
]  # fmt: skip
SIGNATURES = (
    "self, x",
    "self, x, scale=1.0, flag=False, bias=None",
    "self, x, flag=False, bias=None, *args, scale=1.0, **others",
    "self, *args, **kwargs",
)
# How a result is given, and how whoever called gets the value out of it.
RESULTS = (
    ("{a}", ""), ("{a}, {b}", "[0]"), ("{{'value': {a}, 'extra': None}}", "['value']"), ("Pair({a}, 3)", ".first"),
    ("[{a}, [{b}, ({a},)]]", "[0]"), ("Result({a}, {b})", ".value"), ("{a}, {a}.shape[0], 'text', None", "[0]"),
    ("{{'maps': [{a}, {b}], 'value': {a}.relu()}}", "['value']"),
)  # fmt: skip


@dataclass
class Written:
    """A model as source: ``build`` makes it with weights of its own seed. ``calls``: keyword arguments to call it with
    beside its input, of which the first are those of calibration."""

    source: str
    kind: str
    seed: int
    calls: list[dict[str, Any]]

    def __repr__(self) -> str:
        return f"# {self.kind}, seed {self.seed}, called with {self.calls}\n{self.source}"

    def builder(self) -> Callable[[], nn.Module]:
        """What makes the model. Its source has a name and lines, so that a traceback shows them."""
        name = f"/written/model_{hashlib.sha1(self.source.encode()).hexdigest()[:12]}.py"
        linecache.cache[name] = len(self.source), None, self.source.splitlines(keepends=True), name
        names: dict[str, Any] = {"__name__": "written"}
        exec(compile(self.source, name, "exec"), names)  # noqa: S102

        def build() -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.seed)
                return names["build"]().eval()

        return build

    def inputs(self, count: int, seed: int) -> torch.Tensor:
        """Random inputs."""
        generator = torch.Generator().manual_seed(self.seed + seed)
        shape = (count, CHANNELS) if self.kind == "rows" else (count, CHANNELS, 4, 6)
        return torch.rand(shape, generator=generator) * 2 - 0.9


@dataclass
class Class:
    """A class of which the forward is being written."""

    init: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=lambda: ["x"])
    own: set[str] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)
    buffers: int = 0
    needs: set[str] = field(default_factory=set)


class Names(dict):
    """The names of a piece, drawn when they are asked for."""

    def __init__(self, writer: "Writer", cls: Class):
        super().__init__()
        self.writer, self.cls = writer, cls

    def __missing__(self, name: str) -> str:
        self[name] = made = getattr(self, f"new_{name}")()
        return made

    def new_v(self) -> str:
        return f"y{len(self.cls.lines)}"

    def new_t(self) -> str:
        return f"t{len(self.cls.lines)}"

    def new_a(self) -> str:
        # The last value more often than others, so that most of a model matters.
        return self.cls.values[-1] if self.writer.one_of(3) else self.writer.pick(self.cls.values)

    new_b = new_a

    def new_own(self) -> str:
        """A value to write to: a copy, of an input."""
        name = self.new_a()
        if name not in self.cls.own:
            name = f"own{len(self.cls.lines)}"
            self.writer.before.append(f"{name} = {self.new_a()} * 1.0")
            self.cls.values.append(name)
            self.cls.own.add(name)
        return name

    def new_layer(self) -> str:
        """A layer, one that is there already or a new one."""
        if self.cls.layers and not self.writer.one_of(2):
            return self.writer.pick(self.cls.layers)
        return self.new_layer2()

    def new_layer2(self) -> str:
        name = f"self.layer{len(self.cls.layers)}"
        self.cls.init.append(f"{name} = {self.writer.pick(LAYERS[self.writer.kind])}")
        self.cls.layers.append(name)
        return name

    def new_norm(self) -> str:
        name = f"self.norm{len(self.cls.init)}"
        self.cls.init.append(f"{name} = {self.writer.pick(NORMS[self.writer.kind])}")
        return name

    def new_part(self) -> str:
        kind, self["field"] = self.writer.pick(self.writer.parts)
        name = f"self.part{len(self.cls.init)}"
        self.cls.init.append(f"{name} = {kind}()")
        return name

    def new_doubled(self) -> str:
        name = f"self.doubled{len(self.cls.init)}"
        self.cls.init.append(f"{name} = Doubled(8, 8)")
        return name

    def new_weight(self) -> str:
        name = f"self.weight{len(self.cls.init)}"
        shape = "8, 8" if self.writer.kind == "rows" else "8, 8, 3, 3"
        self.cls.init.append(f"{name} = nn.Parameter(torch.randn({shape}) * 0.2)")
        return name

    def new_bias(self) -> str:
        name = f"self.bias{len(self.cls.init)}"
        self.cls.init.append(f"{name} = nn.Parameter(torch.randn(8) * 0.2)")
        return name

    def new_buffer(self) -> str:
        name = f"buffer{len(self.cls.init)}"
        self.cls.init.append(f"self.register_buffer('{name}', torch.rand(8) + 0.5)")
        return f"self.{name}"

    new_buffer8 = new_buffer

    def new_modules(self) -> str:
        name = f"self.modules{len(self.cls.init)}"
        kinds = ", ".join(self.writer.pick(LAYERS[self.writer.kind]) for _ in range(2))
        self.cls.init.append(f"{name} = nn.ModuleList([{kinds}])")
        return name

    def new_named(self) -> str:
        name = f"self.named{len(self.cls.init)}"
        kinds = ", ".join(f"{key!r}: {self.writer.pick(('nn.Identity()', 'nn.Tanh()', 'nn.ReLU6()'))}" for key in "ab")
        self.cls.init.append(f"{name} = nn.ModuleDict({{{kinds}}})")
        return name

    def new_prelu(self) -> str:
        name = f"self.prelu{len(self.cls.init)}"
        self.cls.init += [f"{name} = nn.PReLU(8)", f"nn.init.uniform_({name}.weight, -0.5, 1.5)"]
        return name

    def new_drop(self) -> str:
        name = f"self.drop{len(self.cls.init)}"
        self.cls.init.append(f"{name} = nn.Dropout(0.25, inplace=True)")
        return name

    def new_dims(self) -> str:
        return "2" if self.writer.kind == "rows" else "4"


class Writer:
    """Writes a model by what a test draws."""

    def __init__(self, draw: Callable[[st.SearchStrategy], Any]):
        self.draw = draw
        self.kind = self.pick(("rows", "images"))
        self.parts: list[tuple[str, str]] = []
        self.before: list[str] = []
        self.signature, self.inside = "", False

    def pick(self, things: Any) -> Any:
        return self.draw(st.sampled_from(things))

    def one_of(self, count: int) -> bool:
        """Mostly true: all but one time of so many."""
        return bool(self.draw(st.integers(0, count - 1)) < count - 1)

    def written(self) -> Written:
        classes = [self.cls(f"Part{number}", 3) for number in range(self.draw(st.integers(0, 2)))]
        text = "\n\n\n".join([HEAD.strip(), *classes, self.cls("Model", 6), self.build()])
        return Written(text + "\n", self.kind, self.draw(st.integers(0, 1000)), self.calls())

    def cls(self, name: str, most: int) -> str:
        """The source of a class."""
        cls = Class()
        self.signature = signature = self.pick(SIGNATURES)
        self.inside = name != "Model"
        pieces = ANY + (ROWS if self.kind == "rows" else IMAGES)
        for _ in range(self.draw(st.integers(1, most))):
            self.piece(cls, self.pick([piece for piece in pieces if self.fits(piece)]))
        self.piece(cls, "{v} = {layer}({a})")
        given, got = self.pick(RESULTS)
        result = given.format_map(Names(self, cls))
        head = [f"class {name}(nn.Module):", "    def __init__(self):", "        super().__init__()"]
        body = "\n".join(cls.lines)
        init = list(cls.init)
        init += ["self.kept = []"] if "self.kept" in body else []
        init += ["self.cache = {}"] if "self.cache" in body else []
        init += ["self.calls = 0"] if "self.calls" in body else []
        init += ["self.attention = nn.MultiheadAttention(8, 2, batch_first=True)"] if "self.attention" in body else []
        lines = [f"        {line}" for line in init]
        lines += [""] + self.pick(([], [], ["    @passed_on"], ["    @torch.no_grad()"]))
        lines += [f"    def forward({signature}):"]
        lines += ["        x = args[0] if args else kwargs['x']"] if signature.startswith("self, *") else []
        lines += [f"        {line}".rstrip() for line in "\n".join([*cls.lines, f"return {result}"]).split("\n")]
        if name != "Model":
            self.parts.append((name, got))
        lines += METHODS if "self.step" in body or "self).apart" in body else []
        self.layers = cls.layers
        return "\n".join(head + lines)

    def fits(self, piece: str) -> bool:
        """Whether a piece can be written here."""
        if "{part}" in piece and not self.parts:
            return False
        if "x.sum() > 0" in piece and self.inside:  # int8 could decide otherwise
            return False
        return not ("flag" in piece or "bias is" in piece or "scale)" in piece) or "flag" in self.signature

    def piece(self, cls: Class, piece: str) -> None:
        names = Names(self, cls)
        text = piece.format_map(names)
        cls.lines += self.before
        self.before = []
        cls.lines.append(text)
        if names["v"] not in cls.values:
            cls.values.append(names["v"])
        if "expand" not in piece:  # values that share memory with themselves cannot be written to
            cls.own.add(names["v"])

    def build(self) -> str:
        """The source of what makes the model, with its hooks."""
        hooks = self.draw(st.lists(st.sampled_from(HOOKS), max_size=2))
        lines = ["def build():", "    model = Model()"]
        for hook in hooks:
            module = "model" + self.pick(["", *(layer.removeprefix("self") for layer in self.layers)])
            lines.append(f"    {module}.{hook}")
        return "\n".join([*lines, "    return model"])

    def calls(self) -> list[dict[str, Any]]:
        """Ways to call the model beside its input."""
        if "flag" not in self.signature:
            return [{}]
        bias = torch.linspace(-1, 1, 8).reshape((8,) if self.kind == "rows" else (8, 1, 1))
        others = [{}, {"flag": True}, {"scale": 0.5}, {"bias": 0.25}, {"flag": False}, {"bias": bias}]
        return [self.pick(others), *self.draw(st.lists(st.sampled_from(others), max_size=2))]


@st.composite
def models(draw) -> Written:
    """Models as source, with ways to call them."""
    return Writer(draw).written()
