"""BAK-PURE: calls interleaved on shared weights, each answer held against that of a process that has answered nothing
else."""

from itertools import permutations

import numpy as np

from quantspec.backends.outcome import Outcome
from quantspec.numerics.affine import QParams

from .call import Call
from .draw_bulk import bulk
from .session import Session, Undecided, Violation, compare


class Impure(Violation):
    """A violation with the calls that came before it."""

    def __init__(self, violation: Violation, story: tuple[Call, ...]) -> None:
        super().__init__(violation.call, violation.allowed, violation.got, how=violation.how)
        self.story = story


def hold(session: Session, story: list[Call]) -> None:
    """Raises Impure when a call of a story is answered otherwise than alone, or ends the process and does not alone."""
    answers = {id(call): session.alone(call) for call in story}
    story = [call for call in story if answers[id(call)] is not None]  # others are BAK-ANSWER's matter
    if not story:
        return
    how = session.death(story)
    told: list[Outcome] = []
    if not how:
        try:
            told = session.story(story)
        except Undecided as undecided:  # it dies of them now and then
            how = str(undecided)
    if how:
        beginnings = ((n, session.death(story[:n])) for n in range(1, len(story) + 1))
        length, how = next(((n, death) for n, death in beginnings if death), (len(story), how))
        died = how.split(" on ")[0]
        violation = Violation(story[length - 1], "an answer, as in a fresh process", how, how=died)
        raise Impure(violation, tuple(story[:length]))
    for index, together in enumerate(told):
        call = story[index]
        alone = answers[id(call)]
        assert alone is not None
        if together.kind == "value" == alone.kind:
            try:
                compare(call, together.value, [("in a fresh process", alone.value)])
            except Violation as violation:
                raise Impure(violation, tuple(story[: index + 1])) from None
        elif together.kind != alone.kind:
            allowed, got = (f"{outcome.kind} {outcome.message}".strip() for outcome in (alone, together))
            raise Impure(Violation(call, allowed, got, how=together.kind), tuple(story[: index + 1]))


GRID, WEIGHTS, RESULT = QParams(0.5, 128, 0, 255), QParams(0.25, 0, -128, 127), QParams(2.0, 100, 0, 255)
BIAS = np.array([1, -2, 3], np.float32)
# Small enough to be read where a few numbers show it.
LAYER_INPUT = np.array([[10, 200, 30, 4], [1, 2, 3, 255]], np.uint8)
LAYER_WEIGHT = np.array([[1, -2, 3, -4], [-5, 6, -7, 8], [9, -1, 2, -3]], np.int8)
LAYER = Call("linear", (LAYER_INPUT, GRID, LAYER_WEIGHT, WEIGHTS, BIAS, RESULT))
IMAGE = (np.arange(16, dtype=np.uint8) * 16).reshape(1, 1, 4, 4)
WINDOW_WEIGHT = np.array([[1, -2, 3, 4], [-5, 6, -7, 8], [9, -1, 2, -3]], np.int8).reshape(3, 1, 2, 2)
PLACES = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
WINDOW = Call("conv2d", (IMAGE, GRID, WINDOW_WEIGHT, WEIGHTS, BIAS, RESULT), PLACES)


def arranged(operation: str) -> list[list[Call]]:
    """Stories about an operation in which each form of a layer or of a convolution comes after each other one on the
    same weights: a small one, and one that fills vectors.

    A layer's pairs are told one by one too, where one that is static comes before or after one that is dynamic: what
    the first call left may hide what the second one leaves.
    """
    kind = "conv2d" if operation == "conv2d" else "linear"
    large = next(call for call in bulk(kind, count=9) if call.options.get("groups", 1) == 1 and fills_vectors(call))
    stories = []
    for call in (WINDOW if operation == "conv2d" else LAYER, large):
        forms = layer_forms(call)
        pairs = list(permutations(forms, 2))
        if operation == "linear_dynamic":
            x_q, x, w_q, w, bias, _ = call.arguments
            reals = (x_q.astype(np.float32) - 100) * x.scale
            dynamic = [Call(operation, (reals, w_q, w, bias), {"relu": relu}) for relu in (False, True)]
            every = permutations([*dynamic, *forms], 2)
            pairs = [pair for pair in every if any(call.operation == operation for call in pair)]
            stories += [list(pair) for pair in pairs if len({call.operation for call in pair}) == 2]
        stories.append([call for pair in pairs for call in pair])
    return stories


def fills_vectors(call: Call) -> bool:
    """Whether a layer has a bias, several rows, and more inputs to each output than half a vector."""
    x_q, _, w_q, _, bias, _ = call.arguments
    return bias is not None and len(x_q) > 1 and w_q[0].size > 7


def layer_forms(call: Call) -> list[Call]:
    """The same weights with and without ReLU and bias, with other output and input grids, and with another number of
    rows."""
    x_q, x, w_q, w, bias, y = call.arguments
    wide = QParams(y.scale * np.float32(2), y.zero_point, y.qmin, y.qmax)
    other = QParams(y.scale * np.float32(1), y.qmin + 5, y.qmin, y.qmax)
    other_input = QParams(x.scale * np.float32(2), x.qmin + 3, x.qmin, x.qmax)
    return [
        call.with_arguments(*call.arguments, relu=False),
        call.with_arguments(*call.arguments, relu=True),
        call.with_arguments(x_q, x, w_q, w, None, y, relu=False),
        call.with_arguments(x_q, x, w_q, w, bias, wide, relu=False),
        call.with_arguments(x_q, x, w_q, w, bias, other, relu=False),
        call.with_arguments(x_q, other_input, w_q, w, bias, y, relu=False),
        call.with_arguments(x_q[:1], x, w_q, w, bias, y, relu=False),
    ]
