"""``quantspec conformance`` and ``fingerprint`` on small backends, from the backend to the page; adapters alone."""

import os
import re
import signal

import numpy as np
import pytest
import torch

from quantspec import cli
from quantspec.backends import reproduce
from quantspec.backends.outcome import Hung
from quantspec.backends.protocol import NotOffered
from quantspec.backends.pytorch import pointwise, quantized
from quantspec.backends.pytorch.engines import TorchEngine
from quantspec.backends.pytorch.fake_quantize import TorchFakeQuantize
from quantspec.backends.worker import Worker
from quantspec.conformance import results
from quantspec.conformance.smoke import smoke

HERE = "conformance.small_backends"
pytestmark = pytest.mark.usefixtures("copied_workers")


def test_a_sound_backend_is_examined_and_written_down_and_the_next_results_replace_those(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    assert cli.main(["conformance", "--backend", f"{HERE}:Sound", "--examples", "1", "--write", str(tmp_path)]) == 0
    (recorded,) = results.read_all(tmp_path / "results")
    results.write(tmp_path / "results", recorded)
    assert results.read_all(tmp_path / "results") == [recorded]
    assert recorded.backend == "sound" and recorded.version == "1"
    outcomes = {finding["operation"]: set() for finding in recorded.findings}
    for finding in recorded.findings:
        outcomes[finding["operation"]].add(finding["outcome"])
    assert {name for name, found in outcomes.items() if "pass" in found} >= {"quantize", "linear_dynamic"}
    assert outcomes["conv2d"] == {"not offered"} and not any("fails" in found for found in outcomes.values())
    choices = {choice["place"]: choice["choice"] for choice in recorded.choices if choice["operation"] == "quantize"}
    assert choices and "other" not in choices.values()
    assert re.search(r"sound 1 on .*: \d+ pass, 0 differ, \d+ not offered", capsys.readouterr().out)


def test_a_backend_that_does_otherwise_is_shown_with_the_call(capsys):
    assert cli.main(["conformance", "--backend", f"{HERE}:Truncates", "--examples", "1"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "differs" in said and "asked: quantize(" in said.replace("│ ", "") and "unexplained" in said
    assert cli.main(["fingerprint", f"{HERE}:LosesBias"]) == 0
    assert "other" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["conformance", "--backend"], ["fingerprint"]])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("conformance.broken_backends:CannotBeMade", "this build lacks it"),
        ("nowhere.at_all:Backend", "there is no module nowhere.at_all"),
    ],
)
def test_a_backend_that_cannot_be_had_is_told(command, name, message, capsys):
    assert cli.main([*command, name]) == 2
    said = capsys.readouterr().err
    assert f"backend {name}" in said and message in said


def test_an_adapter_that_fails_or_answers_in_another_kind_is_wrong_and_one_that_refuses_is_not():
    for name, message in (
        ("conformance.broken_backends:Raises", "quantize fails on an easy call: ZeroDivisionError: by nothing"),
        (f"{HERE}:OfAnotherKind", r"quantize returns float32\[.*\] where the protocol expects uint8\["),
    ):
        with Worker(name) as worker, pytest.raises(ValueError, match=f"backend {name}: the adapter's {message}"):
            smoke(name, worker)
    for name in ("Refuses", "Lacks"):
        with Worker(f"conformance.broken_backends:{name}") as worker:
            smoke(name, worker)


def test_a_worker_that_was_stopped_is_one_that_hangs():
    with Worker("conformance.broken_backends:Prints", seconds=0.5) as worker:
        os.kill(worker._process._process.pid, signal.SIGSTOP)
        with pytest.raises(Hung, match="no answer after 0.5 s"):
            worker.quantize(np.zeros(10**6, np.float32), np.float32(1), 0, qmin=0, qmax=255)


def test_a_build_of_torch_without_an_engine_offers_it_not(monkeypatch):
    assert quantized.why_not_offered("best").startswith("this build of torch offers ")
    with pytest.raises(NotOffered, match="this build of torch offers"):
        TorchEngine("best")
    monkeypatch.setattr(pointwise.OnednnPointwise, "linear", lambda *_: torch.zeros(2, 3) @ torch.zeros(2, 3))
    with pytest.raises(NotOffered, match="takes unsigned activations only"):
        pointwise.OnednnPointwise("int8")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(NotOffered, match="this build of torch has no oneDNN"):
        pointwise.OnednnPointwise("int8")


def test_codes_that_cannot_be_read_from_values_are_not_offered():
    """A value in steps so wide that its code stands for infinity."""
    with pytest.raises(NotOffered, match="codes cannot be read from values that are not multiples of the scale"):
        TorchFakeQuantize().quantize(np.float32([3.4e38]), np.float32(2e38), 0, qmin=0, qmax=255)


class Computes:
    """An adapter that asks its library for nothing."""

    def linear(self, x):
        return 3


def test_what_is_written_down_is_a_result_of_the_library():
    with pytest.raises(TypeError, match="linear: expected a result of the backend, got a int"):
        reproduce.result_of(Computes(), "linear", (1,), {})
    with pytest.raises(TypeError, match="all __torch_function__ handlers returned NotImplemented"):
        torch.add(reproduce.Expression([], "x"), 1)
