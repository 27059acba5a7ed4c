"""Chapter 5: static quantization. The oracle is the chapter's own definitions."""

import copy
import io
import re
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import networks
import quantspec as qs
import strategies as draws
from evidence import clause
from quantspec import chapters
from quantspec.ir import program
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.named import dialect
from quantspec.ptq import conversion

spec = chapters.load("static")
EXACT = dialect("exact")


def steps_of(q, kind):
    return [step for step in q.program.steps if isinstance(step, kind)]


def same_program(a, b):
    """Whether two Programs have equal steps and numbers."""
    if [type(s) for s in a.steps] != [type(s) for s in b.steps]:
        return False
    for s, t in zip(a.steps, b.steps):
        for name in vars(s):
            value, other = getattr(s, name), getattr(t, name)
            if isinstance(value, QParams):
                value = (value.scale.tolist(), value.zero_point.tolist(), value.qmin, value.qmax)
                other = (other.scale.tolist(), other.zero_point.tolist(), other.qmin, other.qmax)
            if not (np.array_equal(value, other) if isinstance(value, np.ndarray) else value == other):
                return False
    return True


@clause("STA-STEPS")
@given(networks.perceptrons(), st.booleans(), st.booleans(), st.booleans())
def test_quantize_is_prepare_calibrate_convert(case, fuse, per_channel, reduce_range):
    model, calibration, x = case
    options = dict(fuse=fuse, per_channel=per_channel, reduce_range=reduce_range)
    prepared = qs.prepare(model, **options)
    for batch in calibration:
        prepared(batch)
    by_hand = qs.convert(prepared)
    at_once = qs.quantize(model, calibration, **options)
    assert same_program(by_hand.program, at_once.program)
    assert torch.equal(by_hand(x), at_once(x))


@clause("STA-STEPS")
def test_there_is_one_observer_at_the_input_and_one_at_the_output_of_each_layer():
    for fuse in (True, False):
        prepared = qs.prepare(networks.seeded(networks.Perceptron), fuse=fuse)
        assert list(prepared.observers) == ["x", "first", "second"]
        assert len(prepared.graph.nodes) == (2 if fuse else 3)
    assert len(qs.prepare(networks.seeded(networks.Perceptron)).graph.nodes) == 2
        # The observer of the second layer's input is that of what its input clamps or flattens.


@clause("STA-UNTOUCHED")
@pytest.mark.parametrize("build", [networks.Perceptron, networks.Normalised, networks.Shared, networks.WithSoftmax])
def test_the_model_is_not_modified(build):
    model = networks.seeded(build)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    before, structure, hooks = networks.parameters(model), str(model), len(model._forward_hooks)
    x = networks.inputs(32, (2, 4)) if build is networks.WithSoftmax else networks.inputs()
    q = qs.quantize(model, [x])
    q(x)
    qs.quantize_dynamic(model)(x)
    assert networks.unchanged(model, before) and str(model) == structure and len(model._forward_hooks) == hooks
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@clause("STA-CALIBRATED", "OBS-NOTHING")
def test_converting_without_data_is_refused_and_names_a_place():
    prepared = qs.prepare(networks.seeded(networks.Perceptron))
    with pytest.raises(qs.CalibrationError, match="input 'x': .*has seen no values.*call the network with calibration"):
        qs.convert(prepared)
    prepared(networks.inputs(0))
    with pytest.raises(qs.CalibrationError, match="input 'x'"):
        qs.convert(prepared)
    with pytest.raises(qs.CalibrationError, match="input 'x'"):
        qs.quantize(networks.seeded(networks.Perceptron), [])


@clause("STA-CALIBRATED")
def test_a_nan_in_calibration_names_its_place_and_observes_nothing():
    model, x = networks.seeded(networks.Perceptron), networks.inputs()
    prepared = qs.prepare(model)
    prepared(x)
    before = [o.range() for o in prepared.observers.values()]
    bad = x.clone() * 100
    bad[3, 2] = float("nan")
    with pytest.raises(qs.CalibrationError, match="input 'x': x: expected finite values"):
        prepared(bad)
    assert [o.range() for o in prepared.observers.values()] == before
    with torch.no_grad():
        model.second.weight[0, 0] = float("inf")
    with pytest.raises(qs.CalibrationError, match="^output of layer 'second': x: expected finite values"):
        qs.prepare(model)(x)


@clause("STA-CALIBRATED")
def test_a_place_that_is_neither_an_input_nor_a_layers_output_has_the_values_name():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(torch.log(x))

    model, x = networks.seeded(Model), networks.inputs().abs() + 1
    prepared = qs.prepare(model)
    with pytest.raises(qs.CalibrationError, match="^value 'log': the observer has seen no values"):
        qs.convert(prepared)
    with pytest.raises(qs.CalibrationError, match="^value 'log': x: expected finite values"):
        prepared(-x)
    prepared(x)
    with torch.no_grad():
        assert (qs.convert(prepared)(x) - model(x)).abs().max() < 0.05


@clause("STA-EVERY-BATCH")
@pytest.mark.parametrize("kind", ["list", "tuple", "generator", "loader", "pairs", "dicts"])
def test_every_batch_is_observed_once_whatever_holds_it(kind):
    model, x = networks.seeded(networks.Perceptron), networks.inputs(12)
    parts = list(x.split(4))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(12)), batch_size=4)
    held = {
        "list": parts, "tuple": tuple(parts), "generator": (p for p in parts), "loader": loader,
        "pairs": [(p, torch.zeros(4)) for p in parts], "dicts": [{"x": p} for p in parts],
    }
    average = qs.MovingAverageObserver(0.5)  # notices a batch that is left out, doubled or out of order
    expected = qs.prepare(model, observer=average)
    for part in parts:
        expected(part)
    assert same_program(qs.quantize(model, held[kind], observer=average).program, qs.convert(expected).program)


@clause("STA-EVERY-BATCH")
@pytest.mark.parametrize("hold", [list, tuple, iter])
def test_each_observer_sees_each_batch_once_and_in_order(hold):
    seen = []

    class Recording(qs.MinMaxObserver):
        def observe(self, x):
            seen.append(np.array(x))
            return super().observe(x)

    parts = networks.inputs(12).split(4)
    qs.quantize(networks.seeded(networks.Perceptron), hold(parts), observer=Recording())
    assert [x.shape[1] for x in seen] == [4, 5, 3] * 3
    assert all(np.array_equal(x, part.numpy()) for x, part in zip(seen[::3], parts, strict=True))


@clause("STA-EVERY-BATCH")
@pytest.mark.parametrize("bad", [torch.zeros(2, 4), np.zeros((2, 4)), {"x": torch.zeros(2, 4)}, 7, None, "data"])
def test_what_is_no_iterable_of_batches_is_refused(bad):
    message = (
        f"^calibration: expected an iterable of batches, got {type(bad).__name__}; pass \\[batch\\] for one batch$"
    )
    with pytest.raises(TypeError, match=message):
        qs.quantize(networks.seeded(networks.Perceptron), bad)


@clause("STA-EVERY-BATCH")
def test_a_terminal_is_shown_how_many_batches_have_been_observed(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    for name, stream, shown in (("terminal", Terminal(), True), ("file", io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        qs.quantize(networks.seeded(networks.Perceptron), [networks.inputs()] * 3)
        assert ("calibrate " in stream.getvalue() and "3/3" in stream.getvalue()) is shown, name
        assert shown or not stream.getvalue()


@clause("STA-EVERY-BATCH")
def test_a_batch_that_does_not_fit_is_refused():
    model = networks.seeded(networks.Perceptron)
    for batch, error, message in (
        (torch.zeros(2, 5), ValueError, "layer 'first' expects 4 input features, got shape \\(2, 5\\)"),
        (3.0, TypeError, "batch: expected a tensor, a tuple or a dict, got float"),
        ({"y": torch.zeros(2, 4)}, ValueError, "batch: unknown input 'y', the model takes x"),
        ((), ValueError, "batch: input 'x' is missing"),
    ):
        with pytest.raises(error, match=message):
            qs.quantize(model, [batch])


@clause("STA-FLOAT")
def test_a_network_is_called_with_keywords_as_the_model_is():
    model, x = networks.seeded(networks.WithSoftmax), networks.inputs(8, (2, 4))
    prepared = qs.prepare(model)
    with torch.no_grad():
        for scale in (2.0, 3.0):  # the first batch is compared with the model
            assert torch.equal(prepared(x, scale=scale)["p"], model(x, scale=scale)["p"])


@clause("STA-FLOAT")
@given(networks.perceptrons())
def test_calibration_sees_and_returns_the_float_network(case):
    model, calibration, _ = case
    prepared = qs.prepare(model, fuse=False)
    for batch in calibration:
        with torch.no_grad():
            assert torch.equal(prepared(batch), model(batch))
    seen = {prepared.graph.inputs[0]: calibration}
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    nodes = [node for node in prepared.graph.nodes if type(node).__name__ == "Linear"]
    for node, module in zip(nodes, linears, strict=True):
        handle = module.register_forward_hook(
            lambda _, __, y, name=node.name: seen.setdefault(name, []).append(y.detach())
        )
        for batch in calibration:
            model(batch)
        handle.remove()
    # A layer whose normalization stays in float behind it gives floats and has no range (STA-DIRECT).
    assert set(prepared.observers) >= set(seen) - prepared.placement.direct
    for name, values in seen.items():
        if name in prepared.placement.direct:
            continue
        observer = prepared.observers[name]
        assert (float(observer.minimum), float(observer.maximum)) == (
            float(torch.cat(values).min()),
            float(torch.cat(values).max()),
        )


@clause("STA-WEIGHT", "DYN-WEIGHT")
@given(networks.perceptrons(), st.booleans())
def test_weights_get_symmetric_qparams_from_their_own_values(case, per_channel):
    model, calibration, _ = case
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    options = dict(per_channel=per_channel, dialect="exact")
    for q in (qs.quantize(model, calibration, fuse=False, **options), qs.quantize_dynamic(model, **options)):
        for step, module in zip(q.program.layers, linears, strict=True):
            rows = module.weight.detach().tolist()
            expected = spec.weight_qparams(rows, per_channel)
            scales = np.broadcast_to(step.w_qparams.scale, len(rows)).tolist()
            assert [(s, int(step.w_qparams.zero_point)) for s in scales] == expected
            codes = [[spec.affine.quantize(v, *pair, -128, 127) for v in row] for row, pair in zip(rows, expected)]
            assert step.weight.dtype == np.int8 and step.weight.tolist() == codes
            assert step.w_qparams.axis == (0 if per_channel else None)


@clause("STA-ACTIVATION", "STA-REDUCE")
@given(draws.coverable(), st.booleans())
def test_activations_get_affine_qparams_from_their_range(seen, reduce_range):
    bits = 7 if reduce_range else 8
    grid = EXACT.activation_qparams(*seen, reduce_range=reduce_range)
    assert (float(grid.scale), int(grid.zero_point), grid.qmin, grid.qmax) == spec.activation_qparams(*seen, bits)


@clause("STA-ACTIVATION", "STA-REDUCE")
@given(networks.perceptrons(), st.booleans())
def test_the_grids_of_a_network_come_from_its_observers(case, reduce_range):
    model, calibration, _ = case
    prepared = qs.prepare(model, reduce_range=reduce_range, dialect="exact")
    for batch in calibration:
        prepared(batch)
    q = qs.convert(prepared)
    ranges = {name: observer.range() for name, observer in prepared.observers.items()}
    bits = 7 if reduce_range else 8
    for step in q.program.layers:
        y = step.y_qparams
        assert (float(y.scale), int(y.zero_point), y.qmin, y.qmax) == spec.activation_qparams(*ranges[step.name], bits)
    first = steps_of(q, program.Quantize)[0].qparams
    assert (float(first.scale), int(first.zero_point), first.qmin, first.qmax) == spec.activation_qparams(
        *ranges[q.program.inputs[0]], bits
    )


@clause("STA-REDUCE")
def test_a_reduced_range_keeps_pairs_of_products_within_16_bits():
    q = qs.quantize(networks.seeded(networks.Perceptron), [networks.inputs()], reduce_range=True)
    for step in q.program.layers:
        assert (step.x_qparams.qmin, step.x_qparams.qmax) == (step.y_qparams.qmin, step.y_qparams.qmax) == (0, 127)
        assert 2 * 127 * np.abs(step.weight.astype(int)).max() < 2**15


@clause("STA-SEARCH")
@pytest.mark.parametrize("bits, reduce_range", [(8, False), (8, True), (4, False), (3, True), (2, False)])
@pytest.mark.parametrize("searching", [qs.MSEObserver, qs.HistogramObserver])
def test_a_search_uses_the_codes_that_there_will_be(bits, reduce_range, searching):
    model, x = networks.seeded(networks.Perceptron), networks.inputs(64)
    x[0] *= 20  # a search leaves it out where codes are few
    options = dict(bits=bits, reduce_range=reduce_range, dialect="exact")
    prepared = qs.prepare(model, observer=searching(), **options)
    prepared(x)
    highest = 2 ** (bits - reduce_range) - 1
    own = searching(qmin=0, qmax=highest)
    signed = qs.prepare(model, observer=searching(qmin=-128, qmax=127), **options)
    signed(x)
    assert {(seen.qmin, seen.qmax) for seen in signed.observers.values()} == {(0, highest)}
    q = qs.convert(prepared)
    step = next(step for step in q.program.steps if isinstance(step, program.Quantize))
    low, high = own.observe(x.numpy()).range()
    assert step.qparams.qmax == highest
    assert float(step.qparams.scale) == float(EXACT.activation_qparams(
        low, high, reduce_range=reduce_range, bits=bits
    ).scale)  # fmt: skip
    assert bits == 8 or float(high) < float(x.max())


@clause("STA-SAME-GRID")
def test_flatten_and_relu_keep_the_grid_of_their_input():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(8, 3)

        def forward(self, x):
            return self.second(torch.flatten(torch.relu(self.first(x)), 1))

    model, x = networks.seeded(Model), networks.inputs(9, (2, 4))
    q = qs.quantize(model, [x], fuse=False)
    kinds = [type(step).__name__ for step in q.program.steps]
    assert kinds == ["Quantize", "Linear", "Relu", "Move", "Linear", "Dequantize"]
    # Values that a step makes out of another are named after it, so that no two steps have one name.
    assert [step.name for step in q.program.steps] == [
        "x.codes", "first", "relu.codes", "flatten.codes", "second", "second.float",
    ]
    assert [step.relu for step in q.program.layers] == [False, False]
    assert [step.relu for step in qs.quantize(model, [x]).program.layers] == [True, False]
    first, second = q.program.layers
    assert second.x_qparams is first.y_qparams and steps_of(q, program.Relu)[0].qparams is first.y_qparams
    seen = {}
    q.run_on("reference").compiled({"x": x}, lambda step, value: seen.setdefault(type(step).__name__, value))
    z = int(first.y_qparams.zero_point)
    assert (seen["Relu"] >= z).all() and seen["Move"].tolist() == seen["Relu"].reshape(9, 8).tolist()


@clause("STA-BOUNDARY")
@given(st.booleans().flatmap(lambda fuse: st.tuples(networks.perceptrons(norms=fuse), st.just(fuse))))
def test_codes_from_the_first_layer_to_the_last(drawn):
    (model, calibration, x), fuse = drawn
    with warnings.catch_warnings():
        # A layer that might overflow, which is turned down below.
        warnings.filterwarnings("ignore", "nothing was quantized")
        q = qs.quantize(model, calibration, fuse=fuse)
    assume(not any("beyond int32" in step.reason for step in steps_of(q, program.Call)))  # a layer that might overflow
    seen = []
    q.run_on("reference").compiled(
        {q.program.inputs[0]: x}, lambda step, value: seen.append((type(step).__name__, value))
    )
    names = [name for name, _ in seen]
    assert (
        names.count("Quantize") == names.count("Dequantize") == 1
        and names[0] == "Quantize"
        and names[-1] == "Dequantize"
    )
    assert all(value.dtype == np.uint8 for name, value in seen[:-1])


@clause("STA-BOUNDARY")
def test_a_flattened_input_is_quantized_once():
    model = networks.seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    q = qs.quantize(model, [networks.inputs(5, (2, 2))])
    assert [type(step).__name__ for step in q.program.steps] == ["Quantize", "Move", "Linear", "Dequantize"]


@clause("STA-RUN")
@given(networks.perceptrons(), st.booleans(), st.booleans())
def test_a_static_network_computes_what_the_definition_says(case, per_channel, reduce_range):
    model, calibration, x = case
    prepared = qs.prepare(model, per_channel=per_channel, reduce_range=reduce_range, dialect="exact")
    for batch in calibration:
        prepared(batch)
    q = qs.convert(prepared)
    assume(not any("beyond int32" in step.reason for step in steps_of(q, program.Call)))
    nodes = [node for node in prepared.graph.nodes if type(node).__name__ == "Linear"]
    assume(len(nodes) == len(prepared.graph.nodes))
    zeros = [[0.0] * len(node.weight) for node in nodes]
    layers = [(n.weight.tolist(), z if n.bias is None else n.bias.tolist(), n.relu) for n, z in zip(nodes, zeros)]
    ranges = [prepared.observers[name].range() for name in (prepared.graph.inputs[0], *(n.name for n in nodes))]
    network = spec.convert(layers, ranges, per_channel, 7 if reduce_range else 8)
    assert q(x).tolist() == spec.run(network, x.tolist())


ENGINES = st.sampled_from(["reference", "compiled"])


@clause("STA-FROZEN")
@given(networks.perceptrons(), ENGINES)
def test_running_changes_nothing(case, engine):
    model, calibration, x = case
    q = qs.quantize(model, calibration, engine=engine)
    assert q.engine == engine
    before, first = copy.deepcopy(q.program), q(x)
    for other in (*calibration, x * 1000, -x):
        q(other)
    assert torch.equal(q(x), first) and same_program(q.program, before)


@clause("STA-FROZEN")
def test_threads_do_not_disturb_each_other():
    q = qs.quantize(networks.seeded(networks.Perceptron), [networks.inputs()])
    batches = [networks.inputs(50, seed=s) for s in range(4)]
    expected = [q(b) for b in batches]
    wrong = []

    def work(batch, right):
        wrong.extend(1 for _ in range(20) if not torch.equal(q(batch), right))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(batches, expected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@clause("STA-NO-LEAK")
def test_networks_share_nothing():
    model, x = networks.seeded(networks.WithSoftmax), networks.inputs(8)
    batch = x[:, None].expand(8, 2, 4).contiguous()
    prepared = qs.prepare(model)
    prepared(batch)
    one, first = qs.convert(prepared), None
    first = one(batch)["p"]
    prepared(batch * 50)
    two = qs.convert(prepared)
    assert torch.equal(one(batch)["p"], first)
    assert not same_program(one.program, two.program)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(one(batch)["p"], first)
    third = qs.convert(prepared)
    assert same_program(two.program, third.program)


@clause("STA-NO-LEAK")
def test_what_stays_in_float_is_a_copy():
    model, x = networks.seeded(networks.Normalised), networks.inputs()
    prepared = qs.prepare(model, fuse=False)
    prepared(x)
    one, two = qs.convert(prepared), qs.convert(prepared)
    first = one(x)
    with torch.no_grad():
        model.norm.weight.zero_()
        two.callables["module", "norm"].weight.zero_()
    assert torch.equal(one(x), first) and not torch.equal(two(x), first)
    assert torch.equal(qs.convert(prepared)(x), first)


@clause("STA-LATER")
@given(networks.perceptrons())
def test_what_comes_after_a_conversion_is_for_the_next_one(case):
    model, calibration, x = case
    prepared = qs.prepare(model)
    for batch in calibration:
        prepared(batch)
    first = qs.convert(prepared)
    before, output = copy.deepcopy(first.program), first(x)
    more = calibration[0] * 1000
    prepared(more)
    assert torch.equal(first(x), output) and same_program(first.program, before)
    assert same_program(qs.convert(prepared).program, qs.quantize(model, [*calibration, more]).program)


@clause("STA-BATCH-SIZE")
@given(networks.perceptrons(), st.sampled_from([0, 1, 2, 7]), ENGINES)
def test_any_batch_size_gives_each_row_its_own_output(case, rows, engine):
    model, calibration, _ = case
    q = qs.quantize(model, calibration, engine=engine)
    x = networks.inputs(rows, (calibration[0].shape[1],))
    together = q(x)
    assert together.shape == (rows, model(calibration[0]).shape[1]) and together.dtype == torch.float32
    for i in range(rows):
        assert torch.equal(q(x[i : i + 1])[0], together[i])


@clause("STA-BATCH-SIZE")
@pytest.mark.parametrize("engine", ["reference", "compiled"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_rows_of_very_different_sizes_do_not_disturb_each_other(per_channel, engine):
    model = networks.seeded(lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)))
    x = networks.inputs(100, (64,)) * torch.logspace(-3, 1, 100)[:, None]
    q = qs.quantize(model, [x], per_channel=per_channel, engine=engine)
    assert torch.equal(q(x), torch.cat([q(row[None]) for row in x]))


@clause("STA-REST")
def test_what_cannot_be_quantized_stays_in_float_and_is_listed_with_the_reason():
    model, x = networks.seeded(networks.WithSoftmax), networks.inputs(8, (2, 4))
    q = qs.quantize(model, [x])
    reasons = {step.target: step.reason for step in steps_of(q, program.Call)}
    assert reasons["soft"] == "Softmax has no integer form here"
    text = repr(q)
    assert "\n  Softmax has no integer form here:\n    soft" in text and re.search("first +linear", text)
    with torch.no_grad():
        assert (q(x)["p"] - model(x)["p"]).abs().max() < 0.05
        assert (q(x, scale=2.0)["p"] - model(x, scale=2.0)["p"]).abs().max() < 0.3


@clause("STA-REST")
@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_a_sum_in_float_keeps_the_relu_behind_it(engine):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return torch.relu(torch.softmax(self.layer(x), -1) - 0.5 + x)

    model, x = networks.seeded(Model), networks.inputs()
    q = qs.quantize(model, [x], engine=engine)
    with torch.no_grad():
        assert (q(x) - model(x)).abs().max() < 0.05 and q(x).min() == 0


@clause("STA-REST")
def test_nothing_is_converted_twice():
    q = qs.quantize(networks.seeded(networks.TwoReaders), [networks.inputs()])
    # Of the first layer, which a layer and a sum in float read; the second gives floats itself.
    assert [type(s).__name__ for s in q.program.steps].count("Dequantize") == 1
    names = [step.name for step in q.program.steps]
    assert len(names) == len(set(names))


@clause("STA-ARGUMENTS")
@pytest.mark.parametrize("engine", ["reference", "compiled"])
@pytest.mark.parametrize("build", [networks.Perceptron, networks.Normalised, networks.OutputBefore])
def test_inputs_are_not_written_to(build, engine):
    model, x = networks.seeded(build), networks.inputs()
    before = x.clone()
    q = qs.quantize(model, [x], engine=engine)
    q(x)
    qs.quantize_dynamic(model, engine=engine)(x)
    assert torch.equal(x, before)


@clause("STA-ARGUMENTS")
def test_memory_layout_does_not_matter():
    q = qs.quantize(networks.seeded(networks.Perceptron), [networks.inputs()])
    x = networks.inputs(6)
    wide = torch.stack([x, x * 9], dim=2)
    for same in (wide[:, :, 0], x.t().contiguous().t(), x[None].expand(2, 6, 4)[1], x.clone().requires_grad_()):
        assert torch.equal(q(same), q(x))


@clause("STA-TRAINING")
def test_a_quantized_network_cannot_be_trained():
    q = qs.quantize(networks.seeded(networks.Perceptron), [networks.inputs()])
    assert q.eval() is q and not q.training and not any(m.training for m in q.modules())
    with pytest.raises(ValueError, match="mode: a quantized network cannot be trained"):
        q.train()


@clause("STA-UNTOUCHED")
@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (7, TypeError, "model: expected a torch.nn.Module, got int"),
        (nn.Linear(2, 2).double().eval(), ValueError, "weight is torch.float64 on cpu"),
        (nn.Linear(2, 2, device="meta").eval(), ValueError, "weight is torch.float32 on meta"),
    ],
)
def test_what_is_no_float32_model_on_the_cpu_is_refused(model, error, message):
    with pytest.raises(error, match=message):
        qs.prepare(model)


@clause("STA-UNTOUCHED")
def test_a_model_whose_control_flow_depends_on_data_is_not_refused():
    class Model(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    x = networks.inputs()
    with pytest.warns(UserWarning, match="nothing was quantized"):
        q = qs.quantize(Model().eval(), [x])
    assert torch.equal(q(x), Model()(x)) and torch.equal(q(-x), Model()(-x))


@clause("STA-STEPS")
def test_unknown_choices_are_refused():
    model = networks.seeded(networks.Perceptron)
    with pytest.raises(ValueError, match="dialect: expected one of exact, onnx, .*, got 'fast'"):
        qs.prepare(model, dialect="fast")
    with pytest.raises(ValueError, match="^observer: expected a per-tensor observer without observed values$"):
        qs.prepare(model, observer=qs.MinMaxObserver(axis=0))
    with pytest.raises(ValueError, match="^observer: expected a per-tensor observer without observed values$"):
        qs.prepare(model, observer=qs.MinMaxObserver().observe(np.float32([1])))
    with pytest.raises(TypeError, match=r"observer: expected one of MinMaxObserver\(\), .*, got <class .*xObserver'>$"):
        qs.prepare(model, observer=qs.MinMaxObserver)
    q = qs.quantize(model, [networks.inputs()])
    with pytest.raises(ValueError, match="engine: expected one of auto, .*reference.*, got 'warp'"):
        q.run_on("warp")
    assert torch.equal(q.run_on("reference")(networks.inputs(3)), q(networks.inputs(3)))


@clause("STA-ACTIVATION")
@pytest.mark.parametrize(
    "observer",
    [qs.MovingAverageObserver(0.1), qs.HistogramObserver(64), qs.PercentileObserver(95.0), qs.MSEObserver(16)],
)
def test_every_observer_calibrates_a_network(observer):
    model, batches = networks.seeded(networks.Perceptron), [networks.inputs(40, seed=s) for s in range(3)]
    q = qs.quantize(model, batches, observer=observer, dialect="exact")
    seen = observer
    for batch in batches:
        seen = seen.observe(batch.numpy())
    grid = steps_of(q, program.Quantize)[0].qparams
    assert (float(grid.scale), int(grid.zero_point)) == spec.activation_qparams(*seen.range())[:2]


@clause("STA-WEIGHT")
def test_weights_without_a_range_are_refused_and_empty_ones_are_not():
    model = networks.seeded(networks.Perceptron)
    with torch.no_grad():
        model.second.weight[1, 1] = float("nan")
    with pytest.raises(ValueError, match="model: weight of layer 'second': x: expected finite values"):
        qs.quantize_dynamic(model)
    empty = networks.seeded(lambda: nn.Linear(3, 2))
    empty.weight = nn.Parameter(torch.zeros(2, 0))
    for per_channel, scales in ((True, [1.0, 1.0]), (False, 1.0)):
        codes, grid = conversion.weight_codes(np.zeros((2, 0), np.float32), EXACT, per_channel=per_channel)
        assert codes.shape == (2, 0) and grid.scale.tolist() == scales


@clause("STA-WEIGHT", "DYN-WEIGHT")
def test_a_layer_that_is_called_twice_has_its_weights_once():
    model, x = networks.seeded(networks.Shared), networks.inputs()
    for q in (qs.quantize(model, [x]), qs.quantize_dynamic(model, example=x)):
        one, two = q.program.layers
        assert one.weight is two.weight and one.w_qparams is two.w_qparams


@clause("STA-WEIGHT-BIAS")
@given(st.data())
def test_a_weight_scale_is_large_enough_for_its_bias(data):
    numbers = st.floats(-1.0, 1.0, width=32)
    sizes = data.draw(st.lists(st.sampled_from([0.0, 1e-20, 1e-9, 1e-4, 1.0, 100.0]), min_size=1, max_size=4))
    weight = np.float32([[data.draw(numbers) * size for _ in range(3)] for size in sizes])
    bias = np.float32([data.draw(numbers) * data.draw(st.sampled_from([0.0, 1e-6, 1.0, 1e3])) for _ in sizes])
    layer = nn.Linear(3, len(sizes)).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    x = networks.inputs(8, (3,)) * data.draw(st.sampled_from([1e-3, 1.0, 1e3]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where nothing was quantized, the next line tells it
        q = qs.quantize(layer, [x], dialect="exact")
    assert len(q.program.layers) == 1
    step = q.program.layers[0]
    rows, biases = weight.tolist(), bias.tolist()
    expected = spec.raise_scales(spec.weight_qparams(rows, True), rows, biases, float(step.x_qparams.scale))
    assert step.w_qparams.scale.tolist() == [scale for scale, _ in expected]
    assert step.weight.tolist() == [
        [spec.affine.quantize(v, *qparams, -128, 127) for v in row] for row, qparams in zip(rows, expected, strict=True)
    ]
    with torch.no_grad():
        y = layer(x)
        assert ((q(x) - y).abs() <= 0.02 * (y.abs().max() + np.abs(bias).max()) + 1e-12).all()  # scales have a smallest


@clause("STA-OVERFLOW")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_a_layer_whose_accumulators_could_overflow_stays_in_float(dynamic, relu):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.last = nn.Linear(70_000, 2), nn.Linear(2, 2)

        def forward(self, x):
            y = self.wide(x)
            return self.last(torch.relu(y) if relu else y)

    model, x = networks.seeded(Model), torch.ones(3, 70_000)
    with torch.no_grad():
        model.wide.weight.fill_(1.0)
    with pytest.warns(UserWarning, match="^0 % of .* in int8; the rest: wide .*can reach 2266.*beyond int32"):
        q = qs.quantize_dynamic(model, example=x) if dynamic else qs.quantize(model, [x])
    kept = [step for step in steps_of(q, program.Call) if step.target == "wide"]
    assert len(kept) == 1 and "can reach 2266" in kept[0].reason and "beyond int32" in kept[0].reason
    assert [step.layer for step in q.program.layers] == ["last"] and "beyond int32" in repr(q)
    with torch.no_grad():
        hidden = model.wide(x).relu() if relu else model.wide(x)
        quantized = qs.quantize_dynamic(networks.seeded(lambda: nn.Sequential(model.last))) if dynamic else None
        if quantized is not None:
            assert torch.equal(q(x), quantized(hidden))
        else:
            assert (q(x) - model(x)).abs().max() <= model(x).abs().max() / 64


@clause("STA-OVERFLOW", "STA-RUN")
@pytest.mark.parametrize("relu", [False, True])
def test_a_layer_that_stays_in_float_stands_between_dequantizing_and_quantizing(relu):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.soft, self.first, self.wide, self.last = (
                nn.Softmax(1), nn.Linear(4, 2), nn.Linear(2, 2), nn.Linear(2, 3),
            )

        def forward(self, x):
            y = self.wide(self.first(self.soft(x)))
            return self.last(torch.relu(y) if relu else y)

    model, x = networks.seeded(Model), networks.inputs()
    with torch.no_grad():
        model.wide.bias.copy_(torch.tensor([1e9, -1e9]))
    with pytest.warns(UserWarning, match="^77 % of .* in int8; the rest: wide .*beyond int32"):
        q = qs.quantize(model, [x], dialect="exact", per_channel=False)
    kept = ["Call", "Call"] if relu else ["Call"]
    assert [type(step).__name__ for step in q.program.steps] == [
        "Call", "Quantize", "Linear", "Dequantize", *kept, "Quantize", "Linear", "Dequantize",
    ]
    assert [step.layer for step in q.program.layers] == ["first", "last"]
    assert len({step.name for step in q.program.steps}) == len(q.program.steps)
    seen = {}
    output = q.compiled({"x": x}, lambda step, value: seen.setdefault(step.name, value))
    first, last = q.program.layers
    with torch.no_grad():
        hidden = model.wide(torch.from_numpy(first.y_qparams.dequantize(seen["first"])))
    codes = last.x_qparams.quantize((hidden.relu() if relu else hidden).numpy())
    expected = EXACT.linear(codes, last.x_qparams, last.weight, last.w_qparams, last.bias, last.y_qparams)
    assert seen["last"].tolist() == expected.tolist() and torch.equal(output, q(x))


@clause("STA-OVERFLOW")
@pytest.mark.parametrize("fuse", [False, True])
def test_behind_a_layer_that_stays_in_float_nothing_is_quantized_that_no_layer_reads(fuse):
    model, x = (
        networks.seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Flatten(), nn.Softmax(1))),
        networks.inputs(),
    )
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([1e9, 1e9 + 64, 1e9 - 64]))
    with pytest.warns(UserWarning, match="nothing was quantized: every layer stayed in float"):
        q = qs.quantize(model, [x], fuse=fuse, per_channel=False)
    assert all(isinstance(step, program.Call) for step in q.program.steps)
    with torch.no_grad():
        assert torch.equal(q(x), model(x))


@clause("STA-OVERFLOW")
def test_a_layer_that_is_nearly_all_bias_stays_in_float():
    model = networks.seeded(lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
    with torch.no_grad():
        model[0].bias.fill_(1e9)
    with pytest.warns(UserWarning, match="^50 % of .* in int8; the rest: 0 .*beyond int32"):
        q = qs.quantize(model, [networks.inputs(9, (2,))], per_channel=False)
    assert [step.layer for step in q.program.layers] == ["2"]
    with torch.no_grad():
        assert (q(networks.inputs(9, (2,))) - model(networks.inputs(9, (2,)))).abs().max() <= 1e9 / 64


@clause("STA-EXCLUDE-NAME")
def test_a_name_of_no_module_is_answered_with_those_that_there_are():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(10)]).eval()
    with pytest.raises(ValueError, match=re.escape("no module 'fc'; it has 0, 1, 2, 3, 4, 5, 6, 7 and 2 more")):
        qs.prepare(model, exclude="fc")
