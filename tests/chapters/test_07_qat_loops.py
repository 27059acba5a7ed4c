"""Chapter 7: training loops as people and their libraries write them, and packed sequences in them."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import quantspec as qs
from evidence import clause
from networks import inputs, seeded
from quantspec.qat import optimizers

pytestmark = pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates are in int8")


def network():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def data(count=6, rows=16):
    return [(inputs(rows, (6,), seed), torch.arange(rows) % 3) for seed in range(count)]


def step(p, optimizer, x, y):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(p(x), y)
    loss.backward()
    optimizer.step()
    return loss


@clause("QAT-OPTIMIZER")
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_a_step_of_an_optimizer_that_was_made_too_early_is_refused(kind):
    model, ((x, y), *_) = seeded(network), data()
    early = kind(model.parameters(), lr=0.1)
    p = qs.prepare_qat(model, [x]).train()
    with pytest.raises(ValueError, match="^optimizer: expected parameters of the result .* create the"):
        step(p, early, x, y)
    own = kind(p.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in p.parameters()]
    step(p, own, x, y)
    assert not all(torch.equal(a, b) for a, b in zip(before, p.parameters()))


@clause("QAT-OPTIMIZER")
def test_a_model_is_trained_on_beside_its_copy():
    model, ((x, y), *_) = seeded(network), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    p = qs.prepare_qat(model, [x])
    before = model[0].weight.clone()
    step(model, optimizer, x, y)
    assert not torch.equal(before, model[0].weight) and torch.equal(before, p.model[0].weight)


@clause("QAT-OPTIMIZER")
def test_other_optimizers_step_without_gradients_and_nothing_is_kept_alive():
    model = seeded(network)
    qs.prepare_qat(model, [inputs(4, (6,))])
    keys = [id(parameter) for parameter in model.parameters()]
    assert all(key in optimizers.replaced for key in keys)
    torch.optim.SGD(seeded(network).parameters(), lr=0.1).step()
    del model
    gc.collect()
    assert not any(key in optimizers.replaced for key in keys)


class Task(nn.Module):
    """A module as Lightning has them: the network inside of it, steps and optimizers of its own."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, []

    def training_step(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self.network(x), y)

    def validation_step(self, batch):
        self.seen.append(self.network(batch[0]).argmax(1))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=6)


def fit(task, batches):
    """A trainer: a sanity check before the first step, closures, clipping, accumulation, validation in between."""
    optimizer, schedule = task.configure_optimizers()
    task.eval()
    with torch.inference_mode():
        task.validation_step(batches[0])
    for _ in range(2):
        task.train()
        for number, batch in enumerate(batches):

            def closure(batch=batch, number=number):
                loss = task.training_step(batch) / 2
                if number % 2 == 0:
                    optimizer.zero_grad(set_to_none=False)
                loss.backward()
                nn.utils.clip_grad_norm_(task.parameters(), 1.0)
                return loss

            if number % 2:
                optimizer.step(closure)
                schedule.step()
            else:
                closure()
        task.eval()
        with torch.inference_mode():
            task.validation_step(batches[0])
    return task


@clause("QAT-EQUAL")
@pytest.mark.parametrize("learned", [False, True])
def test_a_trainer_of_modules_trains_what_is_shipped(learned):
    batches = data()
    p = qs.prepare_qat(seeded(network), [x for x, _ in batches], weight_bits=3, learned_scales=learned)
    before = copy.deepcopy(p.state_dict())
    task = fit(Task(p), batches)
    q = qs.convert(task.network)
    assert any(not torch.equal(value, p.state_dict()[name]) for name, value in before.items())
    for x, _ in batches:
        assert torch.equal(q(x), p(x))


@clause("QAT-EQUAL")
def test_lightning_trains_what_is_shipped(tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    batches = data()
    p = qs.prepare_qat(seeded(network), [x for x, _ in batches])

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = p

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    )
    trainer.fit(Module(), batches)
    q = qs.convert(p.eval())
    assert all(torch.equal(q(x), p(x)) for x, _ in batches)


@clause("QAT-EQUAL")
def test_accelerate_trains_what_is_shipped():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    batches = data()
    accelerator = accelerate.Accelerator(cpu=True)
    own = qs.prepare_qat(seeded(network), [x for x, _ in batches]).train()
    p, optimizer = accelerator.prepare(own, torch.optim.SGD(own.parameters(), 0.1))
    for x, y in batches:
        optimizer.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(p(x), y))
        optimizer.step()
    trained = accelerator.unwrap_model(p).eval()
    q = qs.convert(trained)
    assert all(torch.equal(q(x), trained(x)) for x, _ in batches)


class Packed(nn.Module):
    def __init__(self, kind, layers=1, both=False):
        super().__init__()
        self.rnn = kind(6, 5, num_layers=layers, bidirectional=both)
        self.head = nn.Linear(5, 3)

    def forward(self, x, state=None):
        _, end = self.rnn(x) if state is None else self.rnn(x, state)
        return self.head((end[0] if isinstance(end, tuple) else end)[-1])


class PackedInside(Packed):
    def forward(self, x, lengths):
        y, _ = self.rnn(pack_padded_sequence(torch.tanh(x), lengths, enforce_sorted=False))
        return self.head(pad_packed_sequence(y)[0][..., :5])


def sequences(*lengths):
    return [inputs(length, (6,), length) for length in lengths]


@clause("DYN-PACKED", "QAT-EQUAL", "QAT-PARAMETERS")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers, both", [(1, False), (2, True)])
@pytest.mark.parametrize("calibrated", [True, False])
def test_packed_sequences_are_trained(kind, layers, both, calibrated):
    cells = layers * (2 if both else 1)
    state = torch.rand(cells, 3, 5)
    states = (state, state / 2) if kind is nn.LSTM else state
    inside = pack_sequence(sequences(2, 5, 3), enforce_sorted=False)
    for build, batch in (
        (Packed, (inside,)),
        (Packed, (inside, states)),
        (PackedInside, (torch.stack(sequences(5, 5, 5), 1), torch.tensor([2, 5, 3]))),
    ):
        model = seeded(lambda build=build: build(kind, layers, both))
        p = qs.prepare_qat(model, [batch] if calibrated else [], weight_bits=6).train()
        optimizer = torch.optim.SGD(p.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            p(*batch).square().sum().backward()
            optimizer.step()
        assert all(parameter.grad is not None for parameter in p.parameters())
        assert torch.equal(qs.convert(p.eval())(*batch), p(*batch))


@clause("DYN-PACKED", "QAT-SURROGATE")
def test_a_packed_sequence_has_the_gradient_of_the_float_layer():
    model = seeded(lambda: nn.LSTM(6, 5))
    batch = pack_sequence(sequences(2, 5, 3), enforce_sorted=False)
    p = qs.prepare_qat(model, [(batch,)], dialect="exact")
    for part in (model, p):
        output, (end, _) = part(batch)
        assert isinstance(output, PackedSequence)
        (output.data.square().sum() + end.sum()).backward()
    for (name, theirs), ours in zip(model.named_parameters(), p.parameters()):
        assert (ours.grad - theirs.grad).norm() <= 0.1 * theirs.grad.norm(), name
