"""BAK-PURE: calls interleaved on shared weights, each answer held against that of a process that has answered nothing else."""

from dataclasses import replace
from itertools import permutations

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from quantspec.numerics.affine import QParams

from .call import Call
from .draw import CALLS, conv2d_calls, linear_calls
from .draw_bulk import bulk
from .session import Session, Violation, compare


class Impure(Violation):
    """A violation with the calls that came before it."""

    def __init__(self, violation: Violation, story: tuple[Call, ...]):
        super().__init__(violation.call, violation.allowed, violation.got)
        self.story = story


def hold(session: Session, told: list[Call]) -> None:
    """Raises Impure when a call of a story is answered otherwise than alone, or ends the process and does not alone."""
    calls = list({id(call): call for call in told}.values())
    deadly = {id(call) for call in calls if session.death([call])}  # which is BAK-ANSWER's matter
    told = [call for call in told if id(call) not in deadly]
    answers = {id(call): session.story([call])[0] for call in calls if id(call) not in deadly}
    if session.death(told):
        length = next(n for n in range(1, len(told) + 1) if session.death(told[:n]))
        violation = Violation(told[length - 1], "an answer, as in a fresh process", session.death(told[:length]))
        raise Impure(violation, tuple(told[:length]))
    for index, together in enumerate(session.story(told)):
        call = told[index]
        alone = answers[id(call)]
        if together.kind == "value" == alone.kind:
            try:
                compare(call, together.value, [("in a fresh process", alone.value)])
            except Violation as violation:
                raise Impure(violation, tuple(told[: index + 1])) from None
        elif together.kind != alone.kind:
            raise Impure(Violation(call, f"{alone.kind} {alone.message}".strip(), f"{together.kind} {together.message}".strip()), tuple(told[: index + 1]))


GRID, WEIGHTS, RESULT = QParams(0.5, 128, 0, 255), QParams(0.25, 0, -128, 127), QParams(2.0, 100, 0, 255)
BIAS = np.float32([1, -2, 3])
# Small enough to be read where a few numbers show it.
LAYER = Call("linear", (np.uint8([[10, 200, 30, 4], [1, 2, 3, 255]]), GRID, np.int8([[1, -2, 3, -4], [-5, 6, -7, 8], [9, -1, 2, -3]]), WEIGHTS, BIAS, RESULT))
WINDOW = Call(
    "conv2d",
    (np.uint8(range(16)).reshape(1, 1, 4, 4) * 16, GRID, np.int8([[1, -2, 3, 4], [-5, 6, -7, 8], [9, -1, 2, -3]]).reshape(3, 1, 2, 2), WEIGHTS, BIAS, RESULT),
    {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1},
)


def arranged(operation: str) -> list[list[Call]]:
    """Stories about an operation in which each form of a layer or of a convolution comes after each other one on the same weights: a small one, and one that
    fills vectors."""
    kind = "conv2d" if operation == "conv2d" else "linear"
    large = next(call for call in bulk(kind, count=9) if call.options.get("groups", 1) == 1 and fills_vectors(*call.arguments))
    stories = []
    for call in (WINDOW if operation == "conv2d" else LAYER, large):
        forms = layer_forms(call)
        pairs = list(permutations(forms, 2))
        if operation == "linear_dynamic":
            x_q, x, w_q, w, bias, _ = call.arguments
            reals = (x_q.astype(np.float32) - 100) * x.scale
            dynamic = [Call(operation, (reals, w_q, w, bias), {"relu": relu}) for relu in (False, True)]
            pairs = [pair for pair in permutations([*dynamic, *forms], 2) if any(call.operation == operation for call in pair)]
        stories.append([call for pair in pairs for call in pair])
    return stories


def fills_vectors(x_q, x, w_q, w, bias, y) -> bool:
    """Whether a layer has a bias, several rows, and more inputs to each output than half a vector."""
    return bias is not None and len(x_q) > 1 and w_q[0].size > 7


def layer_forms(call: Call) -> list[Call]:
    """The same weights with and without ReLU and bias, with other output and input grids, and with another number of rows."""
    x_q, x, w_q, w, bias, y = call.arguments
    wide, other = (QParams(y.scale * np.float32(factor), point, y.qmin, y.qmax) for factor, point in ((2, y.zero_point), (1, y.qmin + 5)))
    return [
        call.with_arguments(*call.arguments, relu=False),
        call.with_arguments(*call.arguments, relu=True),
        call.with_arguments(x_q, x, w_q, w, None, y, relu=False),
        call.with_arguments(x_q, x, w_q, w, bias, wide, relu=False),
        call.with_arguments(x_q, x, w_q, w, bias, other, relu=False),
        call.with_arguments(x_q, QParams(x.scale * np.float32(2), x.qmin + 3, x.qmin, x.qmax), w_q, w, bias, y, relu=False),
        call.with_arguments(x_q[:1], x, w_q, w, bias, y, relu=False),
    ]


def machine(session: Session) -> type[RuleBasedStateMachine]:
    """A state machine whose rules ask the backend, sharing one layer's weights among calls with other scales, shapes, and ReLUs."""

    broken: list[Impure] = []

    class Interleaved(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.told: list[Call] = []

        @initialize(layer=linear_calls(inputs=st.sampled_from([4, 8, 17, 64]), outs=st.sampled_from([1, 8, 17])), window=conv2d_calls())
        def begin(self, layer, window):
            self.layer, self.window = layer, window

        def tell(self, call: Call) -> None:
            self.told.append(call)

        def teardown(self):
            if self.told and not broken:
                try:
                    hold(session, self.told)
                except Impure as impure:
                    broken.append(impure)
            if broken:  # Hypothesis asks once more, for its own report
                raise broken[0]

        @rule(factor=st.sampled_from([0.5, 1.0, 2.0, 3.0]), zero_point=st.sampled_from([0, 1, 128, 255]), relu=st.booleans())
        def same_layer_other_output(self, factor, zero_point, relu):
            x_q, x, w_q, w, bias, y = self.layer.arguments
            point = zero_point if y.qmin == 0 else zero_point - 128
            self.tell(self.layer.with_arguments(x_q, x, w_q, w, bias, QParams(y.scale * np.float32(factor), point, y.qmin, y.qmax), relu=relu))

        @rule(factor=st.sampled_from([0.5, 2.0, 3.0]), zero_point=st.sampled_from([0, 3, 128]))
        def same_layer_other_input_grid(self, factor, zero_point):
            x_q, x, w_q, w, bias, y = self.layer.arguments
            point = zero_point if x.qmin == 0 else zero_point - 128
            self.tell(self.layer.with_arguments(x_q, QParams(x.scale * np.float32(factor), point, x.qmin, x.qmax), w_q, w, bias, y))

        @rule(rows=st.sampled_from([1, 2, 5, 17]))
        def same_layer_other_rows(self, rows):
            x_q, *rest = self.layer.arguments
            self.tell(self.layer.with_arguments(np.resize(x_q, (rows, x_q.shape[1])), *rest))

        @rule(with_bias=st.booleans())
        def same_layer_other_bias(self, with_bias):
            x_q, x, w_q, w, bias, y = self.layer.arguments
            self.tell(self.layer.with_arguments(x_q, x, w_q, w, np.full(len(w_q), float(y.scale), np.float32) if with_bias else None, y))

        @rule(seed=st.integers(0, 9))
        def same_shape_other_weights(self, seed):
            x_q, x, w_q, w, bias, y = self.layer.arguments
            self.tell(self.layer.with_arguments(x_q, x, np.random.default_rng(seed).integers(-20, 21, w_q.shape).astype(np.int8), w, bias, y))

        @rule(size=st.sampled_from([0.1, 1.0, 50.0]), relu=st.booleans())
        def same_weights_dynamic(self, size, relu):
            x_q, _, w_q, w, bias, _ = self.layer.arguments
            self.tell(Call("linear_dynamic", ((x_q.astype(np.float32) - 100) * np.float32(size), w_q, w, bias), {"relu": relu}))

        @rule(factor=st.sampled_from([0.5, 1.0, 2.0]), relu=st.booleans())
        def same_window_other_output(self, factor, relu):
            *rest, y = self.window.arguments
            self.tell(self.window.with_arguments(*rest, QParams(y.scale * np.float32(factor), y.zero_point, y.qmin, y.qmax), relu=relu))

        @rule(stride=st.sampled_from([(1, 1), (2, 1), (2, 2)]))
        def same_window_other_stride(self, stride):
            self.tell(replace(self.window, options={**self.window.options, "stride": stride}))

        @precondition(lambda self: self.told)
        @rule()
        def the_same_again(self):
            self.tell(self.told[-1])

        @rule(call=st.one_of([CALLS[o] for o in ("quantize", "add", "max_pool2d", "avg_pool2d", "concat")]))
        def something_else(self, call):
            self.tell(call)

    return Interleaved


def search(session: Session, operation: str, settings) -> None:
    """Tells the story of an operation, or for "all" drawn stories of many; raises Impure with one that goes wrong, Undecided when no fresh process can be had."""
    if operation == "all":
        run_state_machine_as_test(machine(session), settings=settings)
    else:
        for told in arranged(operation):
            hold(session, told)
