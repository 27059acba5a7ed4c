"""Families of public models: those whose library is installed are built, called, quantized and measured. ``quantspec
zoo --family`` has the whole tables."""

import copy
import importlib.util
import json
import re
import sys

import pytest
import torch
from torch import nn

import quantspec as qs
from quantspec import cli
from quantspec.errors import MissingExtraError
from quantspec.tutorial.families import audio, measure, registry
from quantspec.tutorial.families.network import built
from quantspec.tutorial.rows import call

# One of each kind, which a run of the suite can afford.
AFFORDABLE = {
    "transformers": ("bert", "gpt2", "t5", "segformer"), "timm": ("resnet10t", "mobilenetv3_small_050", "levit_128s"),
    "torchvision": ("lraspp_mobilenet_v3_large", "raft_small"), "segmentation": ("unet_resnet18",),
    "torchaudio": ("deepspeech", "wav2vec2"),
}  # fmt: skip


def networks(family):
    """The networks of a family; skips where its library is not here."""
    try:
        return registry.networks(family)
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("family", registry.NAMES)
def test_a_family_has_the_networks_that_people_have(family):
    least = {
        "transformers": 20, "timm": 30, "torchvision": 15, "segmentation": 10, "torchaudio": 8, "yolo": 5,
        "generation": 3,
    }  # fmt: skip
    assert len(networks(family)) >= least[family]


@pytest.mark.parametrize("name", ["yolo_v3_tiny", "yolo_v5", "yolo_v7", "yolo_v8", "yolo_v11"])
def test_detectors_are_seeded_and_give_boxes_for_any_size(name):
    network = registry.networks("yolo")[name]
    state = torch.random.get_rng_state()
    model, again = built(network), built(network)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
    for size in (64, 96):
        boxes, maps = call(model, torch.randn(2, 3, size, size))
        assert torch.isfinite(boxes).all() and len(boxes) == 2 and len(maps) in (2, 3)
    assert not model.training and not any(module.training for module in model.modules())


@pytest.mark.parametrize("family, name", [(family, name) for family, names in AFFORDABLE.items() for name in names])
def test_networks_are_built_without_weights_from_elsewhere(family, name):
    network = networks(family)[name]
    model = built(network)
    outputs = network.answer(call(model, network.batch(1)))
    assert outputs and all(torch.isfinite(output).all() for output in outputs)
    assert any(output.std() > 0 for output in outputs if output.numel() > 1)
    assert all(map(torch.equal, outputs, network.answer(call(model, network.batch(1)))))


def test_a_row_says_what_was_taken_in_each_way(monkeypatch):
    row = measure.row("yolo", "yolo_v3_tiny")
    assert row.changed == "" and set(row.ways) == {"static", "dynamic", "dynamic by example"}
    for result in row.ways.values():
        assert isinstance(result, str) or (result.sqnr > 20 and result.seconds > 0 and result.speed > 0)


def refused(*args, **options):
    raise NotImplementedError("not today\nnor tomorrow")


def test_what_is_refused_is_a_row_with_the_reason(monkeypatch):
    monkeypatch.setattr(measure, "prepare", refused)
    monkeypatch.setattr(measure, "quantize_dynamic", refused)
    row = measure.row("yolo", "yolo_v3_tiny")
    assert set(row.ways.values()) == {"NotImplementedError: not today"}
    assert "  refused: yolo_v3_tiny: NotImplementedError: not today" in measure.notes([row])


def test_what_was_done_to_a_model_is_noticed():
    def model():
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()

    deeds = {
        "tensor 0.weight": lambda m: m[0].weight.data.mul_(2),
        "attribute 0.training": lambda m: m[0].train(),
        "attribute 0.kept": lambda m: setattr(m[0], "kept", 1),
        "attribute 1._forward_hooks": lambda m: m[1].register_forward_hook(print),
        "attribute 1.eps": lambda m: setattr(m[1], "eps", 1.0),
    }
    for where, deed in deeds.items():
        own = model()
        before = measure.state(own)
        copy.deepcopy(own)
        assert measure.changes(before, measure.state(own)) == ""
        deed(own)
        assert measure.changes(before, measure.state(own)) == where


def test_sqnr_of_lists_of_any_length_and_of_no_other_shapes():
    values = torch.arange(1.0, 9.0).reshape(4, 2)
    assert measure.sqnr([values], [values[:3]]) == float("inf")
    assert measure.sqnr([values], [1.1 * values]) == pytest.approx(20, abs=1e-3)
    with pytest.raises(ValueError, match="outputs: expected"):
        measure.sqnr([values], [values.T[:, :3]])


def test_tables_fit_a_terminal_and_equal_reasons_are_told_once(monkeypatch, tmp_path, capsys):
    taken = measure.Taken(
        sqnr=35.25, peer_sqnr=None, peer_reason="no", int8_macs=None, compression=3.9, seconds=12.3, float_sqnr=40.0,
        speed=10.25, saved="",
    )  # fmt: skip
    long = "a_network_with_the_longest_name_of_all"
    rows = {
        name: measure.FamilyRow(name, taken, taken, "TypeError: no", "tensor w")
        for name in ("yolo_v5", "yolo_v8")
    }
    monkeypatch.setattr(cli.rows, "measured", lambda measure, names: (rows[name] for name in names))
    file = tmp_path / "rows.json"
    assert cli.main(["zoo", "--family", "yolo", "--model", "yolo_v5", "--model", "yolo_v8", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "  refused: yolo_v5, yolo_v8: TypeError: no" in out and "another network in float: yolo_v5, yolo_v8" in out
    assert re.search(r"yolo_v5 +35\.2 +– +– +12\.3 +10\.25x +35\.2 +– +–", out)
    assert json.loads(file.read_text())["rows"][1]["static"]["compression"] == 3.9
    assert cli.main(["zoo", "--family", "yolo", "--model", "yolo_v5"]) == 0
    assert list(tmp_path.iterdir()) == [file]
    wide = measure.FamilyRow(long, taken, taken, taken, "")
    assert cli.Console(width=200).measure(measure.as_table("segmentation", [wide])).maximum <= 79


def test_unknown_names_are_told(capsys):
    assert cli.main(["zoo", "--family", "yolos"]) == 2
    assert "family: expected one of transformers, timm," in capsys.readouterr().err
    assert cli.main(["zoo", "--family", "yolo", "--model", "yolo_v9"]) == 2
    assert "--model: expected one of yolo_v3_tiny, " in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'gone'", name="gone"), MissingExtraError("gone", name="gone")]
)
@pytest.mark.parametrize("family, extra", [("timm", "families"), ("torchaudio", "audio")])
def test_a_library_that_is_missing_is_told_with_the_one_extra_that_brings_it(error, family, extra, monkeypatch, capsys):
    def missing(name, package):
        raise error

    monkeypatch.setattr(registry.importlib, "import_module", missing)
    assert cli.main(["zoo", "--family", family]) == 2
    told = f"family {family} needs gone, which is not installed: pip install 'quantspec[{extra}]'"
    assert capsys.readouterr().err == f"quantspec: {told}\n"


@pytest.mark.parametrize(
    "version, index",
    [("2.13.0+cpu", " --index-url https://download.pytorch.org/whl/cpu"), ("2.13.0", "")],
)
def test_a_library_built_for_another_torch_is_told_with_where_a_fitting_one_is(version, index, monkeypatch, capsys):
    def broken(name, package):
        raise OSError("Could not load this library:\n_torchaudio.abi3.so")

    monkeypatch.setattr(registry.importlib, "import_module", broken)
    monkeypatch.setattr(torch, "__version__", version)
    assert cli.main(["zoo", "--family", "torchaudio"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"torchaudio does not load beside torch {version} (Could not load this library: _torchaudio" in line
    assert line.endswith(f"pip install --force-reinstall --no-deps torchaudio{index}")


@pytest.mark.parametrize("source, there", [("raise OSError('built for CUDA')", False), ("version = 1", True)])
def test_a_torchaudio_that_does_not_load_is_not_there_for_other_libraries(source, there, monkeypatch, tmp_path):
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "torchaudio", None)  # for what comes after this test
    del sys.modules["torchaudio"]
    audio.hide_torchaudio_that_does_not_load()
    assert (importlib.util.find_spec("torchaudio") is not None) == there
    if not there:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("torchaudio")


def test_a_causal_language_model_generates_in_int8(monkeypatch):
    networks("generation")
    from quantspec.tutorial.families import generation

    small = {**generation.GROUPED, "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 2}
    network = generation.Network(
        lambda: generation.build("LlamaForCausalLM", "LlamaConfig", **small), generation.prompt
    )
    monkeypatch.setitem(generation.NETWORKS, "llama", network)
    row = generation.row("generation", "llama")
    assert row.speeds.keys() == {"float32", "int8", "torch.ao"} and not row.refused and not row.changed
    assert min(row.speeds.values()) > 0 and row.sqnrs["float32"] > 100 > row.sqnrs["int8"] > 20
    model = built(network)
    q, prompt = qs.quantize_dynamic(model), network.batch(0)
    got, expected = generation.generated(q, prompt), generation.generated(model, prompt)
    assert got.shape == expected.shape and torch.equal(got[:, :16], prompt)
    assert torch.equal(got, generation.generated(q, prompt))
    # What is drawn first follows from the logits of one call.
    logits = call(q, {"input_ids": prompt}).logits
    assert int(got[0, 16]) == int(logits[0, -1].argmax())
