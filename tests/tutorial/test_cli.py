"""The command line: what it prints and writes, and how it refuses bad input."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

import quantspec
from quantspec import cli
from quantspec.tutorial import data, models, tutorial


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, dataset, model):
    """One run over a small part of the data, with everything written: (printed, JSON, HTML)."""
    folder = tmp_path_factory.mktemp("run")
    part = replace(dataset, x_test=dataset.x_test[:450], y_test=dataset.y_test[:450])
    patch = pytest.MonkeyPatch()
    patch.setattr(data, "load", lambda root: part)
    patch.setattr(models, "trained", lambda dataset, **_: model)
    patch.setenv("COLUMNS", "200")
    capture = folder / "printed.txt"
    with capture.open("w") as file:
        patch.setattr(sys, "stdout", file)
        try:
            files = ["--json", str(folder / "o.json"), "--report", str(folder / "o.html")]
            code = cli.main(["run", "--batch", "1", "--batch", "10", "--batch", "256", *files])
        finally:
            patch.undo()
    assert code == 0
    return capture.read_text(), json.loads((folder / "o.json").read_text()), (folder / "o.html").read_text()


def test_the_tables_have_a_row_for_each_variant_and_engine(outcome):
    printed, _, _ = outcome
    for name in tutorial.VARIANTS:
        assert re.search(rf"│ {name} +│ +\d+\.\d\d%", printed)
    for engine in ("x86", "fbgemm", "onednn", "qnnpack"):
        assert len(re.findall(rf"^│ {engine} ", printed, re.MULTILINE)) == 4
    assert "numbers compared, 0 differ" in printed.replace("\n", " ")


def test_the_json_has_the_promised_shape(outcome, dataset):
    _, found, _ = outcome
    assert found["dataset"] == dataset.name
    assert [v["name"] for v in found["variants"]] == list(tutorial.VARIANTS)
    for v in found["variants"]:
        assert set(v) == {"name", "accuracy", "bytes", "compression", "latency_us"}
        assert set(v["latency_us"]) == {"1", "10", "256"} and all(us > 0 for us in v["latency_us"].values())
        assert 0 <= v["accuracy"] <= 1 and isinstance(v["bytes"], int)
        assert v["compression"] == found["variants"][0]["bytes"] / v["bytes"]
    rows = {(row["engine"], row["variant"], row["layer"]): row for row in found["equality"]}
    assert len(rows) == len(found["equality"]) == 4 * 4 * 3
    for row in found["equality"]:
        assert set(row) - {"reason"} == {"engine", "variant", "layer", "codes", "differ"} and row["differ"] == 0
        assert row["codes"] == (0 if "reason" in row else 450 * (10 if row["layer"] == "fc3" else 100))
    assert all(p["differ"] == 0 for p in found["parameters"])


def test_static_and_dynamic_are_nearly_four_times_smaller(outcome, dataset):
    found = {v["name"]: v["compression"] for v in outcome[1]["variants"]}
    least = 3.9 if dataset.name == "mnist" else 3.7
    assert all(found[name] >= least for name in ("static", "static-fused", "dynamic"))


def test_the_report_is_one_page_that_fetches_nothing(outcome):
    page = outcome[2]
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]+"', page)
    assert "<script" not in page and "@import" not in page and "url(" not in page
    assert page.count("<img ") == 3 and page.count('alt="') == 3
    for part in ("What it costs", "beside torch", "Accuracy per digit"):
        assert part in page
    for part in ("Weights and their codes", "Observed ranges", "One neuron, worked out"):
        assert part in page
    assert "differs" not in page.split("One neuron")[1]


def test_the_neuron_of_the_report_adds_up(outcome):
    section = outcome[2].split("One neuron, worked out")[1]
    numbers = re.search(r"<code>(-?[\d,]+) \+ (-?[\d,]+) = (-?[\d,]+)</code>", section).groups()
    total, bias, accumulator = (int(v.replace(",", "")) for v in numbers)
    cells = re.findall(r"<td>([+-][\d,]+)</td><td>[+-]\d+\.\d{5}</td>", section)
    products = [int(v.replace(",", "").replace("+", "")) for v in cells]
    assert sum(products) == total and total + bias == accumulator
    steps, zero, code = (int(v) for v in re.search(r"<code>(-?\d+) \+ (\d+) = (\d+)</code>", section).groups())
    assert steps + zero == code
    assert len(re.findall(rf"<td>{code}</td><td>{code}</td><td[^>]*>equal</td>", section)) >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--batch", "0"], "batch: expected at least 1, got 0"),
        (["run", "--batch", "many"], "--batch: invalid int value: 'many'"),
        (["run", "--variant", "int4"], "variant: expected one of float32, static, .*, got 'int4'"),
        (["run", "--data", "nowhere"], "nowhere .given as the data folder.: no such folder"),
        (["run", "--json", "nowhere/o.json"], "--json nowhere/o.json: cannot be written: No such file or directory"),
        (["run", "--report", "."], "--report .*: cannot be written: it is a folder"),
        (["run", "--quickly"], "unrecognized arguments: --quickly"),
        (["walk"], "invalid choice: 'walk'"),
        ([], "required: COMMAND"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "trained", lambda *_, **__: pytest.fail("trains before it looks at its arguments"))
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and re.search(f"^quantspec: .*{message}", err)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_halfway_leaves_no_file(tmp_path, monkeypatch, capsys, dataset):
    def fail(*_, **__):
        raise ValueError("broken off")

    monkeypatch.setattr(data, "load", lambda root: dataset)
    monkeypatch.setattr(models, "trained", fail)
    (tmp_path / "o.json").write_text("before")
    assert cli.main(["run", "--json", str(tmp_path / "o.json"), "--report", str(tmp_path / "o.html")]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["o.json"] and (tmp_path / "o.json").read_text() == "before"
    assert "broken off" in capsys.readouterr().err


def test_the_module_runs_as_a_command(tmp_path):
    environment = {**os.environ, "QUANTSPEC_DATA": str(tmp_path / "none")}
    command = [sys.executable, "-m", "quantspec", "run"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"quantspec: {tmp_path}/none (named by QUANTSPEC_DATA): no such folder\n"


EXTRAS = ("hypothesis", "markdown_it", "matplotlib", "onnx", "onnxruntime", "sklearn", "torchvision")


BLOCKED = f"import sys\nfor name in {EXTRAS}: sys.modules[name] = None\n"  # none of them can be imported


def test_quantizing_needs_no_extra_and_not_the_compiler_of_torch(tmp_path):
    code = """
import torch, quantspec
from torch import nn
class Decides(nn.Linear):
    def __init__(self):
        super().__init__(8, 2)
        self.layer = nn.Linear(2, 2)
    def forward(self, x):
        y = super().forward(x)
        return self.layer(y) if y.sum() < 1e9 else y
model, data = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), [torch.rand(4, 8)]
q = quantspec.quantize(model, data)
q.save("q.safetensors")
assert torch.equal(quantspec.load("q.safetensors")(data[0]), q(data[0]))
print(quantspec.compare(model, q, data), quantspec.quantize_dynamic(model, example=data[0]))
print(quantspec.quantize_dynamic(Decides().eval(), example=data[0]), quantspec.prepare_qat(model, data))
assert "torch._dynamo" not in sys.modules  # which takes two seconds to import
"""
    done = subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "output" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["run"], "tutorial"),
        (["zoo", "--model", "resnet18"], "tutorial"),
        (["fingerprint", "quantspec-onnx"], "conformance"),
        (["conformance"], "conformance"),
    ],
)
def test_a_command_without_its_extra_names_it_in_one_sentence(arguments, extra, sources, tmp_path):
    code = f"{BLOCKED}from quantspec import cli; sys.exit(cli.main({arguments}))"
    environment, flags = dict(os.environ), ("-W", "ignore")
    done = sources.run(code, "", environment=environment, folder=str(tmp_path), options=flags, modules=("torch",))
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(rf"quantspec: .*is not installed: pip install 'quantspec\[{extra}\]'\n", done.stderr)


def test_importing_quantspec_imports_no_extra():
    code = f"import sys, quantspec; print([m for m in {EXTRAS} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"quantspec {quantspec.__version__}\n"
