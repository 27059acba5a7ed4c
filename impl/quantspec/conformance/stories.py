"""BAK-PURE over all operations: drawn stories of calls that share one layer's weights."""

from dataclasses import replace

import numpy as np
from hypothesis import Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from quantspec.numerics.affine import QParams

from .call import Call
from .draw import CALLS, conv2d_calls, linear_calls
from .purity import Impure, arranged, hold
from .sampling import STORY_SEED, drawn_alike, profile
from .session import Session

STORIES, STEPS = 12, 6
LAYERS = linear_calls(inputs=st.sampled_from([4, 8, 17, 64]), outs=st.sampled_from([1, 8, 17]))
OTHERS = st.one_of([CALLS[operation] for operation in ("quantize", "add", "max_pool2d", "avg_pool2d", "concat")])


def machine(session: Session) -> type[RuleBasedStateMachine]:
    """A state machine whose rules ask the backend, sharing one layer's weights among calls with other scales, shapes,
    and ReLUs.

    Hypothesis draws by the names of the rules and of their arguments: with other names, the records would be others.
    """
    broken: list[Impure] = []

    @seed(STORY_SEED)
    class Interleaved(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.story: list[Call] = []

        @initialize(layer=LAYERS, window=conv2d_calls())
        def begin(self, layer: Call, window: Call) -> None:
            self.layer, self.window = layer, window

        def tell(self, call: Call) -> None:
            self.story.append(call)

        def teardown(self) -> None:
            if self.story and not broken:
                try:
                    hold(session, self.story)
                except Impure as impure:
                    broken.append(impure)
            if broken:  # Hypothesis asks once more, for its own report
                raise broken[0]

        @rule(
            factor=st.sampled_from([0.5, 1.0, 2.0, 3.0]), zero_point=st.sampled_from([0, 1, 128, 255]),
            relu=st.booleans(),
        )
        def same_layer_other_output(self, factor: float, zero_point: int, relu: bool) -> None:
            x_q, x, w_q, w, bias, y = self.layer.arguments
            point = zero_point if y.qmin == 0 else zero_point - 128
            grid = QParams(y.scale * np.float32(factor), point, y.qmin, y.qmax)
            self.tell(self.layer.with_arguments(x_q, x, w_q, w, bias, grid, relu=relu))

        @rule(factor=st.sampled_from([0.5, 2.0, 3.0]), zero_point=st.sampled_from([0, 3, 128]))
        def same_layer_other_input_grid(self, factor: float, zero_point: int) -> None:
            x_q, x, w_q, w, bias, y = self.layer.arguments
            point = zero_point if x.qmin == 0 else zero_point - 128
            grid = QParams(x.scale * np.float32(factor), point, x.qmin, x.qmax)
            self.tell(self.layer.with_arguments(x_q, grid, w_q, w, bias, y))

        @rule(rows=st.sampled_from([1, 2, 5, 17]))
        def same_layer_other_rows(self, rows: int) -> None:
            x_q, *rest = self.layer.arguments
            self.tell(self.layer.with_arguments(np.resize(x_q, (rows, x_q.shape[1])), *rest))

        @rule(with_bias=st.booleans())
        def same_layer_other_bias(self, with_bias: bool) -> None:
            x_q, x, w_q, w, bias, y = self.layer.arguments
            other = np.full(len(w_q), float(y.scale), np.float32) if with_bias else None
            self.tell(self.layer.with_arguments(x_q, x, w_q, w, other, y))

        @rule(seed=st.integers(0, 9))
        def same_shape_other_weights(self, seed: int) -> None:
            x_q, x, w_q, w, bias, y = self.layer.arguments
            other = np.random.default_rng(seed).integers(-20, 21, w_q.shape).astype(np.int8)
            self.tell(self.layer.with_arguments(x_q, x, other, w, bias, y))

        @rule(size=st.sampled_from([0.1, 1.0, 50.0]), relu=st.booleans())
        def same_weights_dynamic(self, size: float, relu: bool) -> None:
            x_q, _, w_q, w, bias, _ = self.layer.arguments
            reals = (x_q.astype(np.float32) - 100) * np.float32(size)
            self.tell(Call("linear_dynamic", (reals, w_q, w, bias), {"relu": relu}))

        @rule(factor=st.sampled_from([0.5, 1.0, 2.0]), relu=st.booleans())
        def same_window_other_output(self, factor: float, relu: bool) -> None:
            *rest, y = self.window.arguments
            grid = QParams(y.scale * np.float32(factor), y.zero_point, y.qmin, y.qmax)
            self.tell(self.window.with_arguments(*rest, grid, relu=relu))

        @rule(stride=st.sampled_from([(1, 1), (2, 1), (2, 2)]))
        def same_window_other_stride(self, stride: tuple[int, int]) -> None:
            self.tell(replace(self.window, options={**self.window.options, "stride": stride}))

        @precondition(lambda self: bool(self.story))
        @rule()
        def the_same_again(self) -> None:
            self.tell(self.story[-1])

        @rule(call=OTHERS)
        def something_else(self, call: Call) -> None:
            self.tell(call)

    return Interleaved


def search(session: Session, operation: str) -> list[Impure]:
    """Tells the stories of an operation, or for "all" drawn ones of many. Gives the first of each shape that goes
    wrong, or for "all" the first one; raises Undecided when no fresh process can be had."""
    found: dict[str, Impure] = {}
    if operation != "all":
        for story in arranged(operation):
            try:
                hold(session, story)
            except Impure as impure:
                found.setdefault(impure.shape, impure)
        return list(found.values())
    with drawn_alike():
        steps = settings(profile(STORIES), stateful_step_count=STEPS, phases=[Phase.generate])
        try:
            run_state_machine_as_test(machine(session), settings=steps)
        except Impure as impure:
            return [impure]
    return []
