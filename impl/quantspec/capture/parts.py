"""Which parts of a model can be captured, found from what it does on a batch: each the largest that is the model's own
network.

Every part is compared with what the model computed there (STA-SAME). What differs is not used, smaller parts are.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import nn

from quantspec.errors import CalibrationError, ShapeError, UnsupportedError
from quantspec.ir import float_run
from quantspec.ir.float_graph import FloatGraph

from . import calls, copies
from .calls import CallPattern, NotPlain, call_of
from .recorder import record
from .tracer import Stop, has_layers, refuse_compiled, trace

# What is written out sums in another order than torch's own call: the largest value may be off by this much (STA-SAME).
BOUND = 2.0**-18
# Half a code of 8 bits from minus to plus the largest value: what folding normalizations may change (STA-SAME).
FUSED = 2.0**-8

NOTHING = "nothing in it has an integer form"
# Each run refutes what another way of capturing may mend. Where arguments are others in each, such as a list that
# grows, no run would be the last.
MOST_RUNS = 4

Ready = Callable[[FloatGraph], FloatGraph | None]
Worth = Callable[[nn.Module], bool]


@dataclass
class Parts:
    """``graphs``: for each path the patterns by which the module there was called, and the network of each.
    ``stops``: what stays Python, and why."""

    graphs: dict[str, dict[CallPattern, FloatGraph]] = field(default_factory=dict)
    stops: list[Stop] = field(default_factory=list)


def expected(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, str | None]:
    """What a model of ours gives for some arguments, and what of its state that changes; neither it nor they are
    changed."""
    twin = copies.run_copy(model)
    args, kwargs = copies.cloned((args, kwargs))
    before = copies.state_of(twin)
    with copies.undisturbed():
        output = twin(*args, **kwargs)
    return output, copies.changed(before, copies.state_of(twin))


@contextlib.contextmanager
def computing(argument: str) -> Iterator[None]:
    """Where a model computes an argument for the first time: ValueError, with the model's own error behind it, where it
    cannot."""
    try:
        yield
    except (CalibrationError, ShapeError, UnsupportedError):
        raise
    except Exception as error:  # whatever a user's model, or torch in it, raises
        refuse_compiled(error)
        text = " ".join(str(error).split())
        raise ValueError(f"{argument}: the model raised {type(error).__name__}: {text:.200}") from error


def as_given(model: nn.Module, batch: Any) -> Any:
    """A batch whose entries are the arguments: one that is a list is the one argument of a model of ours where that
    says so, or cannot compute the first entry but can compute the list."""
    if not isinstance(batch, list) or calls.says_list(model.forward):
        return (batch,) if isinstance(batch, list) else batch
    if calls.takes_one(model.forward) and not computes(model, batch[:1]) and computes(model, [batch]):
        return (batch,)
    return batch


def computes(model: nn.Module, args: Sequence[Any]) -> bool:
    """Whether a model of ours computes some arguments."""
    try:
        expected(model, tuple(args), {})
    except Exception:  # whatever a user's model raises
        return False
    return True


def whole_differs(
    model: nn.Module, graph: FloatGraph, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    """Why a graph is not the network of a model, judged by one batch; None when it is."""
    output, state = expected(model, args, kwargs)
    if state is not None:
        return f"forward changes {state!r}"
    return graph_differs(graph, copies.cloned(batch), output)


def graph_differs(graph: FloatGraph, batch: Any, expected: Any, bound: float = BOUND) -> str | None:
    """Why a graph is not what gave an output; None when it is."""
    try:
        with copies.undisturbed():
            return difference(expected, float_run.run(graph, batch), bound)
    except Exception as error:  # whatever the operations of a wrong graph raise
        return f"what was traced fails: {error}"


def find(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], ready: Ready, paths: list[str] | None = None,
    worth: Worth = has_layers, *, acts: bool = False,
) -> Parts:  # fmt: skip
    """The parts of a model of ours, by a batch.

    ``ready`` makes of a captured graph the one to use, or None where nothing in it can be quantized. ``paths``: where
    to look. ``worth`` tells of a module with layers whether one of them could be quantized.
    ``acts``: with what acts in training mode only.
    """
    search = Search(model, ready, paths, worth, acts)
    try:
        while not search.complete(args, kwargs):
            pass
    except (CalibrationError, ShapeError, UnsupportedError):
        raise
    except Exception as error:  # whatever a model raises where its modules are not called directly
        expected(model, args, kwargs)  # which raises what the model raises by itself
        return Parts({}, [Stop("", f"it raises {type(error).__name__} where its modules are watched")])
    return search.parts()


class Search:
    """Runs a model, capturing its modules from the outside in as they are called, again with what was refuted left out
    until nothing more is."""

    def __init__(self, model: nn.Module, ready: Ready, paths: list[str] | None, worth: Worth, acts: bool):
        self.model, self.ready, self.paths, self.worth, self.acts = model, ready, paths, worth, acts
        self.verdicts: dict[tuple[str, CallPattern], FloatGraph | None] = {}
        self.reasons: dict[str, str] = {}
        self.inside = False
        self.refuted: set[str] = set()  # in this run
        self.runs: Counter[str] = Counter()  # in which a path was refuted
        self.recorded: set[tuple[str, CallPattern]] = set()

    def complete(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a run of the model refuted none of the parts that are left."""
        self.refuted.clear()
        twin = copies.run_copy(self.model)
        for path, module in twin.named_modules():
            if isinstance(module, copies.SCRIPTS):
                self.reasons[path] = copies.SCRIPT
            elif path in self.paths if self.paths is not None else has_layers(module):
                module.__dict__["forward"] = self.watched(path, module, module.forward)
        args, kwargs = copies.cloned((args, kwargs))
        with copies.undisturbed():
            twin(*args, **kwargs)
        self.runs.update(self.refuted)
        return not self.refuted

    def watched(self, path: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward that is compared with what was captured of it."""

        def compared(*args: Any, **kwargs: Any) -> Any:
            if self.inside or self.runs[path] >= MOST_RUNS:
                return forward(*args, **kwargs)
            if not self.worth(module):
                self.reasons.setdefault(path, NOTHING)
                return self.within(forward, args, kwargs)
            try:
                pattern, tensors = call_of(forward, args, kwargs)
                check_usual(module, tensors)
            except (NotPlain, TypeError) as error:
                self.reasons.setdefault(path, str(error))
                return forward(*args, **kwargs)
            if (path, pattern) not in self.verdicts:
                self.verdicts[path, pattern] = self.attempt(path, pattern, tensors)
            graph = self.verdicts[path, pattern]
            if graph is None:
                return forward(*args, **kwargs)
            before, given = copies.state_of(module), [t.clone() for t in tensors]
            output = self.within(forward, args, kwargs)
            reason = self.refuted_by(graph, module, before, given, tensors, output)
            if reason is not None:
                self.reasons[path] = reason
                if (path, pattern) in self.recorded:
                    self.verdicts[path, pattern] = None
                else:
                    self.recorded.add((path, pattern))
                    del self.verdicts[path, pattern]
                self.refuted.add(path)
            return output

        # So its signature is the model's own.
        compared.__wrapped__ = forward  # type: ignore[attr-defined]  # functions take attributes
        return compared

    def within(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Calls a module without looking at those in it."""
        self.inside = True
        try:
            return forward(*args, **kwargs)
        finally:
            self.inside = False

    def refuted_by(
        self, graph: FloatGraph, module: nn.Module, before: Any, given: list[torch.Tensor],
        tensors: list[torch.Tensor], output: Any,
    ) -> str | None:
        """Why a graph is not what a module did; None when it is."""
        if (state := copies.changed(before, copies.state_of(module))) is not None:
            return f"forward changes {state!r}"
        if any(not same(a, b) for a, b in zip(given, tensors, strict=True)):
            return "forward writes to its input"
        ready, batch = self.ready(graph), tuple(given)
        assert ready is not None
        if graph_differs(ready, batch, output) is None:
            return None
        return graph_differs(graph, batch, output) or graph_differs(ready, batch, output, FUSED)

    def attempt(self, path: str, pattern: CallPattern, tensors: list[torch.Tensor]) -> FloatGraph | None:
        """The graph of a module called by some pattern, not compared with it yet; None where it cannot be captured as a
        whole.

        Symbolic tracing is tried first; recording, where that fails or was refuted.
        """
        graph = None
        if (path, pattern) not in self.recorded:
            try:
                capture = trace(self.model, path, pattern, acts=self.acts)
                graph = capture.graph if not capture.stops else None
            except UnsupportedError:
                pass
        if graph is None:
            self.recorded.add((path, pattern))
            try:
                graph = record(self.model, path, pattern, tensors, acts=self.acts).graph
            except UnsupportedError as error:
                self.reasons[path] = str(error)
                return None
        if self.ready(graph) is None:
            self.reasons[path] = NOTHING
            return None
        return graph

    def parts(self) -> Parts:
        found = Parts()
        for (path, pattern), graph in self.verdicts.items():
            if graph is not None and (part := self.ready(graph)) is not None:
                found.graphs.setdefault(path, {})[pattern] = part
        found.stops = [Stop(path, reason) for path, reason in self.reasons.items() if path not in found.graphs]
        return found


def check_usual(module: nn.Module, tensors: list[torch.Tensor]) -> None:
    """Raises NotPlain where a module is called for other things than its output, or for one of another type."""
    if (reason := calls.unusual(tensors)) is not None:
        raise NotPlain(reason)
    if torch.is_autocast_enabled("cpu") and not calls.lowered(module):
        raise NotPlain(calls.AUTOCAST)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal, NaN included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def difference(expected: Any, got: Any, bound: float = BOUND) -> str | None:
    """What is not the same in two outputs; None where structure, types, and values within the bound agree (STA-SAME).
    """
    if type(expected) is not type(got):
        return f"it gave a {type(expected).__name__}, what was captured gives a {type(got).__name__}"
    if isinstance(expected, torch.Tensor):
        if expected.layout != torch.strided or expected.is_meta or expected.is_nested:
            return "it gave a tensor without values in memory, or of another layout"
        if expected.dtype != got.dtype or expected.shape != got.shape:
            form = f"{got.dtype}{list(got.shape)}"
            return f"it gave {expected.dtype}{list(expected.shape)}, what was captured gives {form}"
        if same(expected, got):
            return None
        if not expected.is_floating_point():
            return "values differ"
        largest = float(expected.nan_to_num(0, 0, 0).abs().max())
        close = torch.isclose(expected, got, rtol=0, atol=bound * largest, equal_nan=True)
        largest = float((expected - got).abs().nan_to_num(0).max())
        return None if bool(close.all()) else f"values differ by up to {largest:.3g}"
    if isinstance(expected, (tuple, list)):
        if len(expected) != len(got):
            return f"it gave {len(expected)} values, what was captured gives {len(got)}"
        pairs = (difference(a, b, bound) for a, b in zip(expected, got, strict=True))
        return next((found for found in pairs if found is not None), None)
    if isinstance(expected, dict):
        if list(expected) != list(got):
            return f"it gave {list(expected)}, what was captured gives {list(got)}"
        pairs = (difference(expected[key], got[key], bound) for key in expected)
        return next((found for found in pairs if found is not None), None)
    if is_dataclass(expected) and not isinstance(expected, type):
        pairs = (difference(getattr(expected, f.name), getattr(got, f.name), bound) for f in fields(expected))
        return next((found for found in pairs if found is not None), None)
    return None if expected is got or expected == got else "values differ"  # constants: a graph gives nothing else
