"""Causal language models of the transformers library, quantized dynamically: tokens per second of ``generate``, beside
float32 and torch.ao. Weights are random; sizes are those of small published models with fewer layers and words."""

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import nn

from quantspec.ptq.dynamic import quantize_dynamic
from quantspec.tutorial.rows import Column, call, decibels, first_line, table

from .measure import changes, dynamic_by_torch, sqnr, state
from .network import Network, built, integers
from .transformers import build

WORDS, PROMPT, TOKENS, ROUNDS = 8000, 16, 32, 5
ENDS = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = ENDS | {
    "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 12,
    "num_key_value_heads": 4,
}  # fmt: skip


@dataclass(frozen=True)
class GenerationRow:
    """One model. ``speeds``: tokens per second by who computes; ``sqnrs``: of the logits of the prompt in dB, likewise;
    ``refused``: why somebody has neither; ``changed``: what of the model was another afterwards."""

    name: str
    speeds: dict[str, float]
    sqnrs: dict[str, float]
    refused: dict[str, str]
    changed: str


def generated(model: nn.Module, prompt: torch.Tensor) -> torch.Tensor:
    """A prompt and the TOKENS after it, each the likeliest."""
    generate: Callable[..., torch.Tensor] = getattr(model, "generate")  # noqa: B009  # the library's own method
    length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    with torch.no_grad():
        return generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, **length)


def logits(model: nn.Module, prompt: torch.Tensor) -> list[torch.Tensor]:
    """The logits of a prompt."""
    return [call(model, {"input_ids": prompt}).logits]


def row(family: str, name: str) -> GenerationRow:
    """Measures one model in this process: medians of calls in turn."""
    network = NETWORKS[name]
    model, prompt = built(network), network.batch(0)
    before = state(model)
    makers: dict[str, Callable[[], nn.Module]] = {
        "float32": lambda: model, "int8": lambda: quantize_dynamic(model), "torch.ao": lambda: dynamic_by_torch(model),
    }  # fmt: skip
    models: dict[str, nn.Module] = {}
    sqnrs: dict[str, float] = {}
    refused: dict[str, str] = {}
    for who, make in makers.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what torch says of torch.ao's future
                models[who] = make()
            generated(models[who], prompt)
            sqnrs[who] = sqnr(logits(model, prompt), logits(models[who], prompt))
        except Exception as error:  # a model that is refused is a row of the table
            refused[who] = first_line(error)
    seconds: dict[str, list[float]] = {who: [] for who in sqnrs}
    for _ in range(ROUNDS):
        for who, times in seconds.items():
            start = time.perf_counter()
            generated(models[who], prompt)
            times.append(time.perf_counter() - start)
    speeds = {who: TOKENS / statistics.median(times) for who, times in seconds.items()}
    return GenerationRow(name, speeds, sqnrs, refused, changes(before, state(model)))


def as_table(family: str, found: list[GenerationRow]) -> Table:
    """The rows as a table."""
    def speed(who: str) -> Column[GenerationRow]:
        return Column(who, lambda r: f"{r.speeds[who]:.1f}" if who in r.speeds else "–")

    def gain(r: GenerationRow) -> str:
        return f"{r.speeds['int8'] / r.speeds['float32']:.2f}x" if "int8" in r.speeds else "–"

    columns = [
        Column("model", lambda r: r.name), speed("float32"), speed("int8"), speed("torch.ao"),
        Column("int8 / float32", gain), Column("dB", lambda r: decibels(r.sqnrs.get("int8"))),
        Column("torch.ao's dB", lambda r: decibels(r.sqnrs.get("torch.ao"))),
    ]  # fmt: skip
    return table("generate, tokens per second", columns, found)


def notes(found: list[GenerationRow]) -> list[str]:
    """Who refused a model and why, and what was changed."""
    lines = [f"{r.name}: {who} refused: {reason}" for r in found for who, reason in r.refused.items()]
    return lines + [f"{r.name}: changed: {r.changed}" for r in found if r.changed]


def as_json(family: str, found: list[GenerationRow]) -> dict[str, Any]:
    """The rows as plain data."""
    return {"family": family, "rows": [asdict(r) for r in found]}


def prompt(seed: int) -> torch.Tensor:
    return integers(WORDS, 1, PROMPT, seed=seed)


NETWORKS = {
    "gpt2": Network(partial(build, "GPT2LMHeadModel", "GPT2Config", n_layer=4, **ENDS), prompt),
    "llama": Network(partial(build, "LlamaForCausalLM", "LlamaConfig", **GROUPED), prompt),
    "qwen2": Network(partial(build, "Qwen2ForCausalLM", "Qwen2Config", **GROUPED), prompt),
    "opt": Network(partial(
        build, "OPTForCausalLM", "OPTConfig", hidden_size=768, num_hidden_layers=4, num_attention_heads=12,
        ffn_dim=3072, word_embed_proj_dim=768, **ENDS,
    ), prompt),
}  # fmt: skip
