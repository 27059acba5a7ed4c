"""Sizes that a recording knows as numbers of its graph, while it lasts and when it is over; and the smallest of what it
does with arguments by their names and with what a first call keeps."""

import pytest
import torch
from recordings import recorded
from torch import nn

from networks import seeded
from quantspec.capture import kept, parts, tensor_names, tracked
from quantspec.errors import UnsupportedError
from quantspec.ir.program import Call
from told import exactly

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))


class Stopped(Exception):
    """What ends the recording below."""


class Recording:
    """Notes what is required of sizes, and what is computed of them."""

    def __init__(self):
        self.ended, self.required, self.made = False, [], []

    def size_node(self, target, args):
        self.made.append((target.__name__, *map(tracked.exact, args)))
        return self.made[-1]

    def require(self, target, args, result):
        self.required.append((target.__name__, *map(tracked.exact, args), result))

    def stop(self, reason):
        raise Stopped(reason)


def number(recording, value):
    return tracked.number(recording, value, lambda: f"the node of {value}")


def test_a_size_that_is_read_as_a_number_ends_the_recording_that_lasts():
    recording = Recording()
    size = number(recording, 5)
    for read in (lambda: list(range(size)), lambda: [1, 2, 3, 4, 5, 6][size]):
        with pytest.raises(Stopped, match=exactly("Python counts to a size, or looks something up by it")):
            read()
    with pytest.raises(Stopped, match=exactly("torch reads a size in a way that cannot be recorded")):
        size.node  # noqa: B018 - read as torch reads it
    with pytest.raises(TypeError, match=exactly("a size cannot be hashed while a model is recorded")):
        hash(size)
    assert not recording.required


def test_a_size_is_a_plain_number_when_the_recording_is_over():
    recording = Recording()
    size, share = number(recording, 5), number(recording, 2.5)
    recording.ended = True
    assert list(range(size)) == [0, 1, 2, 3, 4] and "abcdef"[size] == "f"
    assert hash(size) == hash(5) and {5: "five"}[size] == "five" and hash(share) == hash(2.5)
    assert size.bit_length() == 3 and size.real == 5 and share.imag == 0.0
    assert size + 2 == 7 and type(size + 2) is int and type(share * 2) is float
    assert size > 4 and not size == 6 and bool(size) and not recording.required


def test_what_is_asked_of_a_size_while_it_is_recorded_is_required():
    recording = Recording()
    size = number(recording, 5)
    assert size.real == 5 and recording.required == [("eq", 5, 5, True)]
    with pytest.raises(AttributeError, match=exactly("a size has no attribute 'rank'")):
        size.rank  # noqa: B018
    assert (size + 2).size_node == ("add", 5, 2) and (9 - size).size_node == ("sub", 9, 5)
    assert size.size_node == "the node of 5"
    for wrong in (lambda: size + object(), lambda: object() - size, lambda: size + "a", lambda: size < "a"):
        with pytest.raises(TypeError, match="not supported between|unsupported operand|must be str|can only concat"):
            wrong()
    assert [1] * size == [1] * 5 and recording.required[1:] == [("eq", 5, 5, True)]


class Asks(nn.Module):
    """Decides twice by the same size."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        rows = x.shape[0]
        x = self.layer(x) if rows > 2 else x
        return x * 2 if rows > 2 else x


def test_what_a_graph_depends_on_is_required_once():
    model = seeded(Asks).requires_grad_(False)
    graph = recorded(model, ROWS)
    asserted = [node.args[1] for node in graph.nodes if isinstance(node, Call) and node.target == "torch._assert"]
    assert sum("> 2) is True" in message for message in asserted) == 1


def test_arguments_by_name_are_put_where_they_are_looked_for():
    by_place = tensor_names.by_place
    assert by_place(torch.add, (), {"input": 1, "other": 2, "alpha": 3}) == ((1, 2), {"alpha": 3})
    assert by_place(torch.add, (1,), {"other": 2}) == ((1, 2), {})
    assert by_place(torch.full, (), {"size": (2,), "fill_value": 1}) == ((), {"size": (2,), "fill_value": 1})
    assert by_place(torch.addmm, (1,), {"mat1": 2, "mat2": 3, "beta": 4}) == ((1, 2, 3), {"beta": 4})
    assert by_place(torch.where, (), {"condition": 1, "input": 2}) == ((), {"condition": 1, "input": 2})
    assert by_place(test_other_values_and_sizes_of_arguments, (1,), {"other": 2}) == ((1,), {"other": 2})
    assert by_place(nn.Linear(2, 2), (), {"input": 1, "other": 2}) == ((1,), {"other": 2})


def test_other_values_and_sizes_of_arguments():
    none = torch.zeros(0, 3, dtype=torch.int64)
    assert kept.of_other_values(none).shape == (0, 3)
    assert kept.of_other_values(torch.tensor([1, 2, 3])).tolist() == [1, 2, 1]
    assert kept.of_other_values(torch.tensor([1.0, 2.0])).tolist() == [1.25, 0.75]
    assert kept.halved(torch.arange(5), (0, 1)).tolist() == [0, 1, 2]
    sizes = [[x.shape for x in args] for args, _ in kept.of_other_sizes(((torch.zeros(2, 3, 5), torch.zeros(2)), {}))]
    assert sizes == [[(4, 3, 5), (4,)], [(2, 2, 5), (2,)], [(2, 3, 3), (2,)], [(2, 2, 3), (2,)]]


class Counts(nn.Module):
    """Gives something else at each call."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.calls


class Keeps(nn.Module):
    """Keeps something of its first call, whose first number has to be the one that is asked for."""

    kept = None

    def __init__(self, first=None):
        super().__init__()
        self.first = first

    def forward(self, x):
        if self.kept is None:
            if self.first not in (None, float(x[0, 0])):
                raise ValueError("other numbers")
            self.kept = torch.zeros(1)
        return x + self.kept


def test_a_model_that_keeps_something_of_each_call_is_taken_as_it_is():
    model = Counts()
    assert kept.called_once(model, (ROWS,), {}) is model and model.calls == 0
    stays = Keeps()
    called = kept.called_once(stays, (ROWS,), {})
    assert called is not stays and called.kept is not None and stays.kept is None
    choosy = Keeps(float(ROWS[0, 0]))
    assert kept.called_once(choosy, (ROWS,), {}) is choosy  # no other values are taken


def test_what_a_model_says_of_its_input_in_our_words_is_raised_as_it_is():
    class Refuses(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            raise UnsupportedError("no such rows")

    with pytest.raises(UnsupportedError, match=exactly("no such rows")):
        parts.find(Refuses(), (ROWS,), {}, lambda *arguments: None)
