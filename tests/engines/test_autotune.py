"""What is chosen in use: the fastest of several ways, layer by layer and size by size."""

import re
import time

import torch
from torch import nn

import quantspec as qs
from quantspec.engines import autotune
from quantspec.engines.autotune import Fastest


def test_as_many_answers_are_kept_as_there_is_room_for(monkeypatch):
    monkeypatch.setattr(autotune, "KEPT", 2)
    fastest = Fastest()
    for question in "abc":
        for _ in range(autotune.TRIALS):
            assert fastest.run(question, {"only": lambda: 1}) == 1
    assert fastest.chosen == {"c": "only"}


def test_the_fastest_is_found_for_each_question():
    fastest, runs = Fastest(), []

    def way(name, question, seconds):
        def run():
            runs.append((name, question))
            time.sleep(seconds)
            return name

        return run

    for _ in range(2 * autotune.TRIALS + 4):
        for question, seconds in (("small", (0.0, 0.01)), ("large", (0.01, 0.0))):
            ways = {name: way(name, question, took) for name, took in zip("ab", seconds)}
            assert fastest.run(question, ways) in ("a", "b")
    assert fastest.chosen == {"small": "a", "large": "b"} and not fastest.seconds
    assert runs[-2:] == [("a", "small"), ("b", "large")]
    assert runs.count(("b", "small")) == runs.count(("a", "large")) == autotune.TRIALS
    assert fastest.names(lambda key: True) == ["a", "b"] and fastest.names(lambda key: key == "large") == ["b"]


def test_questions_do_not_pile_up():
    fastest = Fastest()
    for question in range(3 * autotune.KEPT):
        for _ in range(1 + question % 3):
            assert fastest.run(question, {"a": lambda: 1}) == 1
    assert len(fastest.seconds) <= autotune.KEPT and len(fastest.chosen) <= autotune.KEPT


def told(q):
    """Which other engine runs layer 0, as the table tells it."""
    return re.search("on another engine:\n  (.*):\n    0$", repr(q))[1]


def test_networks_tell_who_runs_their_layers():
    model = nn.Sequential(nn.Conv3d(2, 2, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(2), nn.Conv1d(2, 4, 3)).eval()
    x = torch.randn(2, 2, 4, 5, 6)
    q = qs.quantize(model, [x])
    expected = q.run_on("reference")(x)
    assert q.engines == {"0": "torch or reference", "3": "compiled"} and told(q) == "torch or reference"
    for run in range(2 * autotune.TRIALS):
        assert torch.equal(q(x), expected)
        assert q.engines["0"] == "being measured" or run == 2 * autotune.TRIALS - 1
    assert q.engines["0"] in ("torch", "reference") and told(q) == q.engines["0"]
    assert torch.equal(q(x), expected)
    assert q.run_on("reference").engines == {"0": "reference", "3": "reference"}
    assert q.run_on("compiled").engines == {"0": "reference", "3": "compiled"}
    assert q.run_on("torch").engines == {"0": "torch", "3": "torch"} and "engine torch" in repr(q.run_on("torch"))
