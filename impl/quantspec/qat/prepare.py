"""Quantization-aware training: prepare, train, convert (chapter 7)."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from quantspec.capture import calls, copies
from quantspec.errors import CalibrationError, UnsupportedError, flag, near_names, real_number, whole_number
from quantspec.module import islands
from quantspec.module.islands import QuantizedModel
from quantspec.module.module import QuantizedModule
from quantspec.numerics.observers import MinMaxObserver
from quantspec.ptq import static
from quantspec.ptq.captured import Captured
from quantspec.ptq.options import checked
from quantspec.ptq.static import Observer, Prepared
from quantspec.ptq.work import NO_PART, nothing_in, report_of_network, report_of_parts, warn_of_float
from quantspec.surroundings import level_of_caller, usual

from . import optimizers
from .eager import eager
from .live import bring, still
from .network import Network, Training, sharing

NO_DATA = "the model has seen no values; train on a batch or pass calibration batches"


class QATModule(nn.Module):
    """A model in quantization-aware training, made by ``prepare_qat`` and converted by ``convert``.

    Attributes:
        model: the float network, a copy of the user's model. Training changes its parameters, which keep their names.
            Calling it computes in float.
        networks: the captured parts of the model. Without calibration there are none before the first batch.
    """

    model: nn.Module
    running: nn.Module | None
    twins: list[tuple[nn.Module, nn.Module]]
    prepared: Prepared | None
    again: Callable[[nn.Module], Prepared] | None

    def __init__(self, prepared: Prepared, training: Training, again: Callable[[nn.Module], Prepared]):
        """``again``: what prepares a copy of the model as this one was."""
        super().__init__()
        assert prepared.capture is not None
        self.model = prepared.capture.model
        self.how, self.options = training, prepared.options
        self.networks = nn.ModuleList()
        self.patterns: list[tuple[str, Any]] = []
        self.work: Any = None
        self.stops: Any = ()
        self.exclude = prepared.capture.exclude
        self.__dict__["running"] = None  # a copy of the model with the networks in it, which shares its tensors
        self.__dict__["twins"] = []  # modules whose copies are in it, and those
        self.__dict__["prepared"], self.__dict__["again"] = prepared, again

    @usual
    def settle(self) -> None:
        """Makes the networks of what a batch has shown to be the model."""
        prepared, capture = undecided(self.prepared)
        if capture.running is None:
            self.networks.append(Network(prepared, self.model, self.how))
            self.patterns = [("", None)]
        else:
            self.work, self.stops = capture.work, capture.stops
            for path, patterns in capture.parts.items():
                for pattern, part in patterns.items():
                    self.networks.append(Network(part, self.model, self.how))
                    self.patterns.append((path, pattern.identity()))
            self.attach()
        self.__dict__["prepared"] = self.__dict__["again"] = None

    def attach(self) -> None:
        """Puts the networks into a copy of the model that shares its tensors."""
        parts: dict[str, dict[Any, nn.Module]] = {}
        for path, pattern, network in self.parts():
            parts.setdefault(path, {})[pattern] = network
        self.__dict__["running"], self.__dict__["twins"] = sharing(self.model, parts)
        islands.attach(self.__dict__["running"], parts, trained=True)

    @property
    def settled(self) -> bool:
        """Whether a batch has shown which parts of the model are networks; there may be none."""
        return self.prepared is None

    @property
    def is_whole(self) -> bool:
        """Whether one graph is the whole model."""
        return len(self.patterns) == 1 and self.patterns[0][1] is None

    def parts(self) -> Iterator[tuple[str, Any, Network]]:
        """Path, pattern of the call and network of each part."""
        for (path, pattern), network in zip(self.patterns, self.networks):
            assert isinstance(network, Network)
            yield path, pattern, network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the integer network, with gradients. In training mode the batch updates ranges and statistics
        afterwards.

        Raises:
            CalibrationError: in evaluation mode before any data was seen.
        """
        if not torch.compiler.is_compiling():
            calls.dense(args, kwargs, training=True)
        if not self.settled:
            if not self.training:
                raise CalibrationError(NO_DATA)
            self.begin(args, kwargs)
        if self.is_whole:
            return self.networks[0](*args, **kwargs)
        assert self.running is not None
        self.bring(back=False)
        try:
            return self.running(*args, **kwargs)
        finally:
            self.bring(back=True)

    @eager
    def bring(self, *, back: bool) -> None:
        """Gives the copy that runs the modes and plain attributes of the model, or, ``back``, what it has kept."""
        for module, twin in self.twins:
            bring(*((twin, module) if back else (module, twin)))

    @eager
    @usual
    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Settles on the first batch what the network is. What is observed of it there does not count."""
        prepared, capture = undecided(self.prepared)
        with still(self.model):
            prepared.forward(*copies.cloned(args), **copies.cloned(kwargs))
        networks = [part for patterns in capture.parts.values() for part in patterns.values()]
        for part in [prepared, *networks]:
            part.observers = dict.fromkeys(part.observers, MinMaxObserver())
        before = {name for name, _ in self.named_parameters()}
        self.settle()
        if late := [name for name, _ in self.named_parameters() if name not in before]:
            text = "prepare_qat: the first batch added parameters for weights that no parameter gives"
            advice = "create the optimizer after it, or pass calibration batches to prepare_qat"
            warnings.warn(f"{text}, {', '.join(late)}; {advice}", stacklevel=level_of_caller())

    def freeze(self, *, ranges: bool = True, statistics: bool = True) -> "QATModule":
        """Stops updating the ranges of activations and the statistics of normalizations (QAT-FREEZE).

        Raises:
            CalibrationError: for ranges that do not exist yet.
        """
        if ranges and not (self.settled and all(network.has_ranges() for _, _, network in self.parts())):
            raise CalibrationError(f"freeze: {NO_DATA}")
        for _, _, network in self.parts():
            network.frozen |= ranges
            network.statistics_frozen |= statistics
        return self

    def extra_repr(self) -> str:
        bits = f"weights of {self.options.weight_bits} bits, activations of {self.options.bits}"
        return f"dialect {self.options.dialect.name}, {bits}"

    def __deepcopy__(self, memo: dict[int, Any]) -> "QATModule":
        twin = memo[id(self)] = QATModule.__new__(QATModule)
        prepared = None if self.again is None else self.again(copies.own_copy(self.model).eval())
        if prepared is None:
            copies.tree_copy(self.model, memo)  # also of what torch's deepcopy refuses once it has run
        else:
            # What observes the first batch belongs to the model that it was made of.
            model = undecided(prepared)[1].model
            for own, other in zip(self.model.modules(), model.modules(), strict=True):
                memo[id(own)] = other
                if hasattr(own, "training"):  # which frozen TorchScript has not
                    other.training = own.training
        for name, value in self.__dict__.items():
            if name not in ("running", "twins", "prepared", "again"):
                # What was found of the model nobody changes.
                shared = name in ("patterns", "work", "stops")
                twin.__dict__[name] = value if shared else copy.deepcopy(value, memo)
        twin.__dict__ |= {"running": None, "twins": [], "prepared": prepared, "again": self.again}
        if self.running is not None:
            twin.attach()
        return twin

    def __getstate__(self) -> dict[str, Any]:
        if self.prepared is not None:  # which holds functions and machine code
            raise TypeError(f"a network in training cannot be pickled before its first batch: {NO_DATA}")
        return {**self.__dict__, "running": None, "twins": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch has no types there
        if self.settled and not self.is_whole:
            self.attach()


def undecided(prepared: Prepared | None) -> tuple[Prepared, Captured[Prepared]]:
    """What observes the first batch."""
    assert prepared is not None and prepared.capture is not None
    return prepared, prepared.capture


@near_names
def prepare_qat(
    model: nn.Module,
    calibration: Iterable[Any] = (),
    *,
    averaging: float = 0.01,
    delay: int = 0,
    learned_scales: bool = False,
    fuse: bool = True,
    per_channel: bool = True,
    reduce_range: bool | None = None,
    observer: Observer = MinMaxObserver(),
    dialect: str = "onnx",
    bits: int = 8,
    weight_bits: int | None = None,
    exclude: str | Sequence[str] = (),
    engine: str = "auto",
) -> QATModule:
    """Prepares a model for quantization-aware training: its forward pass uses the integers that it will be converted to
    (chapter 7).

    Train the result, then pass it to ``convert``. The model is not modified. It may be in training mode; the result
    then is, too. Options that are not listed here are those of ``quantize``.

    Args:
        model: a float32 model on the CPU.
        calibration: batches as for ``quantize``, which give the first ranges. Without any, the first training batch is
            computed with activations in float and gives them.
        averaging: the share of each further batch in the moving average of ranges, above 0 and at most 1.
        delay: the number of training batches in which activations stay in float.
        learned_scales: whether scales are parameters (QAT-SCALE). Needs calibration batches.
        observer: the observer for the calibration batches.

    Raises:
        TypeError: for arguments of a wrong type and unknown options.
        ValueError: for unknown names, shares and delays out of range, and learned scales without calibration.
        UnsupportedError: for a dialect that cannot be trained.

    Warns of weights that a hook of torch computes, such as pruning's, as they are trained without it.
    """
    if not 0 < real_number(averaging, "averaging") <= 1:
        raise ValueError(f"averaging: expected more than 0 and at most 1, got {averaging}")
    if whole_number(delay, "delay") < 0:
        raise ValueError(f"delay: expected a number of batches of at least 0, got {delay}")
    flag(learned_scales, "learned_scales")
    if isinstance(model, (QuantizedModule, QuantizedModel, Prepared, QATModule)):
        raise TypeError(f"model: expected a float model, got a {type(model).__name__}")
    static.check_calibration(calibration)
    options = checked(
        per_channel=per_channel, reduce_range=reduce_range, dialect=dialect, bits=bits, weight_bits=weight_bits,
        engine=engine,
    )  # fmt: skip
    if isinstance(model, nn.Module) and (hooks := copies.by_hooks(model)):
        name, what = next(iter(hooks.items()))
        others = f", like {len(hooks) - 1} others" if len(hooks) > 1 else ""
        text = f"prepare_qat: {name} is computed by {what}, whose hook is left out, and trained as a parameter{others}"
        warnings.warn(f"{text}; use torch.nn.utils.parametrizations", stacklevel=level_of_caller())
    modes = [getattr(m, "training", False) for m in model.modules()] if isinstance(model, nn.Module) else [False]
    given, in_training = model, modes[0]
    if any(modes):
        model = usual(copies.own_copy)(copies.inside(model)).eval()
    again = partial(static.observing, options=options, observer=observer, fuse=fuse, exclude=exclude, acts=True)
    prepared = again(model)
    if options.dialect.accumulate_rule != "exact":
        raise UnsupportedError(
            f"dialect: {options.dialect.name} adds products in 16 bits, which saturate;"
            " train in the dialect without -int16"
        )
    qat = QATModule(prepared, Training(float(averaging), delay, learned_scales), again)
    any_batch = False
    for batch in calibration:
        prepared.observe(batch)
        any_batch = True
    if learned_scales and not any_batch:
        raise ValueError("learned_scales: expected calibration batches, whose ranges initialize the scales")
    if any_batch:
        qat.settle()
    optimizers.replace(given.parameters())
    return qat.train(in_training)


@usual
def convert(prepared: "Prepared | QATModule") -> QuantizedModule | QuantizedModel:
    """The quantized network of a calibrated or trained one. Calibration or training can go on afterwards (STA-NO-LEAK).

    A layer whose accumulators could overflow stays in float, with that as the reason (STA-OVERFLOW).

    Args:
        prepared: the result of ``prepare`` or ``prepare_qat``.

    Raises:
        TypeError: for anything else.
        CalibrationError: for a place that saw no data; the message names it (STA-CALIBRATED).
        ValueError: for weights that hold NaN; the message names the layer.
    """
    if not isinstance(prepared, QATModule):
        return static.convert(prepared)
    if not prepared.settled:
        raise CalibrationError(NO_DATA)
    engine = prepared.options.engine
    programs: dict[str, dict[Any, Any]] = {}
    graphs: dict[str, dict[Any, Any]] = {}
    for path, pattern, network in prepared.parts():
        programs.setdefault(path, {})[pattern] = network.converted()
        graphs.setdefault(path, {})[pattern] = network.evaluated
    if prepared.is_whole:
        (network,) = (network for _, _, network in prepared.parts())
        program = programs[""][None]
        report = report_of_network(network.evaluated, program, network.macs)
        warn_of_float(report, [program], nothing_in(network.evaluated))
        return QuantizedModule(program, engine, report)
    report = report_of_parts(graphs, programs, prepared.work, prepared.stops, prepared.exclude)
    warn_of_float(report, [program for patterns in programs.values() for program in patterns.values()], NO_PART)
    networks = {
        path: {pattern: QuantizedModule(program, engine) for pattern, program in patterns.items()}
        for path, patterns in programs.items()
    }
    model = copies.own_copy(prepared.model).eval()
    return QuantizedModel(model, networks, {}, prepared.stops, report)


