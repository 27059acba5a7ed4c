"""The report: one self-contained HTML page with the tables and pictures of a tutorial run."""

import html
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from quantspec.extras import needed
from quantspec.ir.program import Linear, Program, Quantize
from quantspec.module.module import QuantizedModule

from . import neuron, training_pictures
from .drawing import FLOAT, INK, INT8, axes, picture, section, table
from .few_bits import Training
from .tutorial import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light; --ink: #1d2433; --soft: #5b6579; --line: #d9dee7; --accent: #c2410c; --good: #15803d; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: #fff;
       font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
p { max-width: 44rem; } .soft { color: var(--soft); }
.scroll { overflow-x: auto; max-width: 100%; }
.tall { width: fit-content; max-height: 26rem; overflow-y: auto; border: 1px solid var(--line); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; background: #fff; } .tall th { position: sticky; top: 0; }
.words { text-align: left; }
.good { color: var(--good); } .bad { color: #b91c1c; font-weight: 700; }
figure { margin: 1rem 0; } img { width: 44rem; max-width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .9rem; }
ol.steps { padding-left: 1.4rem; } ol.steps li { margin: .55rem 0; max-width: 52rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) { table { font-size: .8rem; } th, td { padding: .25rem .4rem; } }
code { font: .88em/1.4 ui-monospace, "DejaVu Sans Mono", monospace; background: #f3f5f9; padding: .05em .3em; \
border-radius: 3px; }
"""


LATENCIES = (
    "Latency by batch size in microseconds, in brackets the speed-up against float32: the median of interleaved calls "
    "on one thread, on the engine that a network takes by default in its dialect."
)
EQUALITY = (
    "Outputs that differ, of all outputs of the layer over the whole test set, each engine in its own dialect of the "
    "specification."
)
HISTOGRAMS = (
    "Each layer's float weights as a histogram. The ticks below are the grid: one for each int8 code, taller where "
    "weights use it."
)
RANGES = "What calibration saw at each place, as the grid of 8-bit codes covers it; the dot is the zero point."
TORCH = (
    "The same neuron, given the same input codes, scales and weights, in torch's kernels and in our arithmetic of "
    "their dialects:"
)


def page(model: nn.Module, result: Result, training: Training | None = None) -> str:
    """The report as HTML that fetches nothing. ``model`` is the float network that ``result`` is about; ``training``:
    what it gave at few bits, where that was asked for."""
    name = next((v.name for v in result.variants if v.name == "static-fused"), None)
    name = name or next((v.name for v in result.variants if v.name.startswith("static")), None)
    sections = [
        section("What it costs and what it saves", variants_table(result), LATENCIES),
        section("Our arithmetic beside torch's kernels", equality(result)),
        section("Accuracy per digit", picture(per_digit(result), "Test accuracy of every variant, digit by digit.")),
    ]
    sections += [] if training is None else training_pictures.sections(training)
    q = next((v.network for v in result.variants if v.name == name), None)
    if name and isinstance(q, QuantizedModule):
        layers = [step for step in q.program.layers if isinstance(step, Linear)]
        sections += [
            section("Weights and their codes", picture(weight_histograms(model, layers), HISTOGRAMS)),
            section("Observed ranges", picture(ranges(q.program), RANGES)),
            section("One neuron, worked out", neuron_steps(model, q, name, result)),
        ]
    title = f"quantspec: {html.escape(result.dataset.name)} in 8 bits"
    best = max((v.compression for v in result.variants), default=1)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    lead = (
        f"A network of {parameters:,} parameters, quantized in {len(result.variants) - 1} variants, up to {best:.2f} "
        f"times smaller, tested on {len(result.dataset.x_test):,} images."
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{title}</title><style>{STYLE}</style></head><body>'
        f"<h1>{title}</h1><p>{lead} {html.escape(result.dataset.note)}</p>{''.join(sections)}</body></html>\n"
    )


def variants_table(result: Result) -> str:
    """Accuracy, size and speed of each variant."""
    base, rows = result.variants[0], []
    sizes = list(base.latency_us)
    for v in result.variants:
        change = "" if v is base else f"{100 * (v.accuracy - base.accuracy):+.2f} pp"
        speed = [f"{v.latency_us[s]:,.0f} ({base.latency_us[s] / v.latency_us[s]:.2f}x)" for s in sizes]
        rows.append([v.name, f"{v.accuracy:.2%}", change, f"{v.bytes:,}", f"{v.compression:.2f}x", *speed])
    return table(["variant", "accuracy", "change", "bytes", "compression", *(f"batch {s}" for s in sizes)], rows)


def equality(result: Result) -> str:
    """Outputs that differ, of each layer on each engine: a sentence when none does."""
    if any(r.differ or r.reason for r in result.equality):
        return f"<p class=soft>{EQUALITY}</p>{equality_table(result)}"
    compared = sum(r.codes for r in result.equality)
    engines = [
        [engine, " or ".join(names), f"{sum(r.codes for r in result.equality if r.engine == engine):,}"]
        for engine, names in result.dialects.items()
    ]
    variants = ", ".join(dict.fromkeys(r.variant for r in result.equality))
    sentence = (
        f"None of {compared:,} outputs differs: every layer of {variants}, over the whole test set, each engine in its "
        "own dialect of the specification."
    )
    return f"<p>{sentence}</p>{table(['engine', 'dialect', 'outputs compared'], engines)}"


def equality_table(result: Result) -> str:
    """Outputs that differ, of each layer on each engine."""
    layers, rows = list(dict.fromkeys(r.layer for r in result.equality)), []
    for engine, variant in dict.fromkeys((r.engine, r.variant) for r in result.equality):
        cells = []
        for r in (r for r in result.equality if (r.engine, r.variant) == (engine, variant)):
            kind = "bad" if r.differ else "good"
            counts = f'<span class="{kind}">{r.differ:,}</span> / {r.codes:,}'
            cells.append(f"not offered: {html.escape(r.reason)}" if r.reason else counts)
        rows.append([engine, variant, *cells, " or ".join(result.dialects.get(engine, ()))])
    return table(["engine", "variant", *layers, "dialect"], rows, tall=True)


def per_digit(result: Result) -> "Figure":
    """Bars: the accuracy of each variant on each digit."""
    labels = result.dataset.y_test.numpy()
    figure, ((ax,),) = axes(5.4, 2.6)
    palette = needed("matplotlib", "tutorial", "the report").colormaps["YlOrBr"]
    shades = palette(np.linspace(0.35, 0.9, max(1, len(result.variants) - 1)))
    width = 0.8 / len(result.variants)
    for i, v in enumerate(result.variants):
        right = [(v.predictions[labels == d] == d).mean() * 100 if (labels == d).any() else 0 for d in range(10)]
        colour = FLOAT if i == 0 else shades[i - 1]
        ax.bar(np.arange(10) + (i + 0.5) * width - 0.4, right, width, label=v.name, color=colour)
    lowest = min(p.get_height() for p in ax.patches)
    ax.set(xticks=range(10), xlabel="digit", ylabel="right, %", ylim=(max(0, lowest - 3), 100))
    ax.legend(fontsize=8, ncols=3, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def weight_histograms(model: nn.Module, layers: list[Linear]) -> "Figure":
    """Each layer's float weights over the grid of their codes."""
    modules = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    weights = {path: module.weight.detach().numpy().ravel() for path, module in modules.items()}
    figure, all_axes = axes(5.4, 2 * len(layers), nrows=len(layers))
    for (ax,), step in zip(all_axes, layers):
        scale = float(step.w_qparams.scale.max())
        used = np.bincount(step.weight.ravel().astype(int) + 128, minlength=256)
        heights, _, _ = ax.hist(weights[step.layer], bins=120, color=FLOAT, alpha=0.75)
        grid = (np.arange(256) - 128) * scale
        # Logarithmic, so that codes which occur once can be seen beside those which occur thousands of times.
        depth = np.where(used > 0, 0.06 + 0.2 * np.log1p(used) / np.log1p(used.max()), 0.02)
        ax.vlines(grid, -depth * heights.max(), 0, color=INT8, linewidth=0.7)
        title = f"{step.layer}: scale {scale:.6g}, {np.count_nonzero(used)} of 256 codes used"
        ax.set_title(title, fontsize=10, loc="left", color=INK)
        ax.set(yticks=[], xlabel="weight")
        ax.spines["left"].set_visible(False)
    return figure


def ranges(program: Program) -> "Figure":
    """What the grids of inputs and layers cover."""
    places = [("input", step.qparams) for step in program.steps if isinstance(step, Quantize)]
    places += [(step.layer, neuron.output_grid(step)) for step in program.layers if isinstance(step, Linear)]
    figure, ((ax,),) = axes(5.4, 0.6 * len(places) + 0.8)
    for row, (_, grid) in enumerate(places):
        low, high = (float(grid.scale) * (end - int(grid.zero_point)) for end in (grid.qmin, grid.qmax))
        ax.plot([low, high], [row, row], color=INT8, linewidth=6, solid_capstyle="butt")
        ax.plot([0], [row], "o", color=INK, markersize=5)
        text = f"{low:.3g} .. {high:.3g}, scale {float(grid.scale):.4g}, zero point {int(grid.zero_point)}"
        ax.annotate(text, (low, row), xytext=(0, 8), textcoords="offset points", fontsize=8, color=INK)
    names = [name for name, _ in places]
    ax.set(yticks=range(len(places)), yticklabels=names, xlabel="real value", ylim=(-0.5, len(places) - 0.2))
    ax.invert_yaxis()
    return figure


def neuron_steps(model: nn.Module, q: QuantizedModule, name: str, result: Result) -> str:
    """One output of the last layer for the first test image: every number between its inputs and its code."""
    n = neuron.work_out(q, model, result.dataset.x_test[:1])
    x_scale, x_zero = float(n.x.scale), int(n.x.zero_point)
    y_scale, y_zero = float(n.y.scale), int(n.y.zero_point)
    unit, multiplier, layer = float(n.unit), float(n.multiplier), html.escape(n.layer)
    mantissa = float(n.multiplier * 2**n.shift)
    order = np.argsort(-np.abs(n.products))
    rows = [
        [str(i), str(n.x_codes[i]), f"{n.x_codes[i] - x_zero:+d}", str(n.w_codes[i]), f"{n.products[i]:+,}",
         f"{n.products[i] * unit:+.5f}"]
        for i in order
    ]  # fmt: skip
    rule = "rounded, ties to even"
    steps = [
        f"The layer <code>{layer}</code> of <code>{name}</code> is given {len(n.x_codes)} codes. "
        f"Its input has scale s_x = <code>{x_scale:.9g}</code> and zero point z_x = <code>{x_zero}</code>; "
        f"this neuron's weights have "
        f"scale s_w = <code>{n.w_scale:.9g}</code> and zero point 0. Every product (q_x - z_x) * q_w, largest first:"
        + table(["input", "q_x", "q_x - z_x", "q_w", "product", "real value"], rows, tall=True),
        f"The products add up to <code>{n.total:,}</code>, in units of s_x * s_w = <code>{unit:.9g}</code>.",
        f"The bias <code>{n.bias:.9g}</code> is <code>{n.bias / unit:,.3f}</code> units, {rule}: "
        f"<code>{n.bias_code:,}</code>. The accumulator is "
        f"<code>{n.total:,} + {n.bias_code:,} = {n.accumulator:,}</code>, "
        f"the real value <code>{n.accumulator * unit:.7g}</code>.",
        f"The output has scale s_y = <code>{y_scale:.9g}</code> and zero point z_y = <code>{y_zero}</code>, "
        f"so the multiplier is M = s_x * s_w / s_y = "
        f"<code>{multiplier:.9g}</code>. Jacob et al. write it as 2<sup>-{n.shift}</sup> * {mantissa:.9g}.",
        f"M * accumulator = <code>{float(n.multiplier * n.accumulator):.6f}</code>, {rule}: <code>{n.steps}</code>. "
        f"Plus the zero point: <code>{n.steps} + {y_zero} = {n.steps + y_zero}</code>, "
        f"saturated to {n.y.qmin}..{n.y.qmax}: the code is <strong>{n.code}</strong>.",
        f"Dequantized: {y_scale:.7g} * ({n.code} - {y_zero}) = <code>{n.real:.7g}</code>. "
        f"The float network gives <code>{n.float_value:.7g}</code>.",
    ]
    differs = '<span class="bad">differs</span>'
    beside = [
        [html.escape(engine), html.escape(dialect), str(ours), str(theirs), "equal" if ours == theirs else differs]
        for engine, dialect, ours, theirs in n.beside_torch()
    ]
    image = f"the first test image, a {int(result.dataset.y_test[0])}"
    note = f"Neuron {n.index} of <code>{layer}</code>, for {image}. Each step is the clause INT-LINEAR of chapter 3."
    items = "".join(f"<li>{step}</li>" for step in steps)
    engines = table(["engine", "dialect", "our code", "torch's code", ""], beside)
    return f"<p>{note}</p><ol class=steps>{items}</ol><p>{TORCH}</p>{engines}"
