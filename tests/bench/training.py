"""What a step of training costs beside that of the float network and of torch.ao's, on one thread:
``OMP_NUM_THREADS=1 PYTHONPATH=tests python -m bench.training``.

Every round runs one step of each, so that whatever else the machine does meets all alike; processor time, medians.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

import quantspec as qs
from quantspec.tutorial import torch_fx
from quantspec.tutorial.models import MLP, LeNet

BUILDS = {"MLP": MLP, "LeNet": LeNet}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, 1e-4),
    "SGD": lambda parameters: torch.optim.SGD(parameters, 1e-3, momentum=0.9),
}
WARM = 10  # steps before any is measured


def step(network: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(x), y).backward()
    optimizer.step()


def measured(build: Callable[[], nn.Module], batch: int, optimizer: str, rounds: int) -> dict[str, float]:
    """Microseconds of processor time that a step takes, by what is trained."""
    torch.manual_seed(0)
    x, y = torch.randn(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
    model = build().eval()
    networks = {
        "float": build(), "quantspec": qs.prepare_qat(model, [x]),
        "torch.ao": torch_fx.in_training(model, x, bits=8, engine="x86"),
    }  # fmt: skip
    optimizers = {name: OPTIMIZERS[optimizer](network.train().parameters()) for name, network in networks.items()}
    times: dict[str, list[int]] = {name: [] for name in networks}
    for number in range(WARM + rounds):
        for name, network in networks.items():
            start = time.process_time_ns()
            step(network, optimizers[name], x, y)
            if number >= WARM:
                times[name].append(time.process_time_ns() - start)
    return {name: median(found) / 1000 for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="steps that are measured (200)")
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 256], help="batch sizes (64 256)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print("network  batch  optimizer  float, us  quantspec  torch.ao")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.ao is deprecated
        for name, build in BUILDS.items():
            for batch in chosen.batches:
                for optimizer in OPTIMIZERS:
                    found = measured(build, batch, optimizer, chosen.rounds)
                    ours, theirs = (found[peer] / found["float"] for peer in ("quantspec", "torch.ao"))
                    times = f"{found['float']:9,.0f}  {ours:7.2f} x  {theirs:6.2f} x"
                    print(f"{name:7}  {batch:5}  {optimizer:9}  {times}", flush=True)


if __name__ == "__main__":
    main()
