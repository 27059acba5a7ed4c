"""The report: one self-contained HTML page with the tables and pictures of a tutorial run."""

import base64
import html
import io
from collections.abc import Iterable

import matplotlib
import numpy as np
from torch import nn

from quantspec.ir.program import Linear, Quantize

from . import neuron
from .tutorial import Result

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 - the backend must be chosen first

INK, FLOAT, INT8 = "#1d2433", "#7a869c", "#c2410c"
STYLE = """
:root { color-scheme: light; --ink: #1d2433; --soft: #5b6579; --line: #d9dee7; --accent: #c2410c; --good: #15803d; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: #fff;
       font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
p { max-width: 44rem; } .soft { color: var(--soft); }
.scroll { overflow-x: auto; max-width: 100%; } .tall { max-height: 26rem; overflow-y: auto; border: 1px solid var(--line); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; background: #fff; } .tall th { position: sticky; top: 0; }
th:first-child, td:first-child, .left { text-align: left; }
.good { color: var(--good); } .bad { color: #b91c1c; font-weight: 700; }
figure { margin: 1rem 0; } img { width: 44rem; max-width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .9rem; }
ol.steps { padding-left: 1.4rem; } ol.steps li { margin: .55rem 0; max-width: 52rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) { table { font-size: .8rem; } th, td { padding: .25rem .4rem; } }
code { font: .88em/1.4 ui-monospace, "DejaVu Sans Mono", monospace; background: #f3f5f9; padding: .05em .3em; border-radius: 3px; }
"""


def page(model: nn.Module, result: Result) -> str:
    """The report as HTML that fetches nothing. ``model`` is the float network that ``result`` is about."""
    name = next((v.name for v in result.variants if v.name == "static-fused"), None)
    name = name or next((v.name for v in result.variants if v.name.startswith("static")), None)
    sections = [
        section("What it costs and what it saves", variants_table(result),
                "Latency by batch size in microseconds, in brackets the speed-up against float32: the median of interleaved calls on one "
                "thread, on the engine that a network takes by default in its dialect."),
        section("Our arithmetic beside torch's kernels", equality_table(result),
                "Outputs that differ, of all outputs of the layer over the whole test set, each engine in its own dialect of the specification."),
        section("Accuracy per digit", picture(per_digit(result), "Test accuracy of every variant, digit by digit.")),
    ]
    if name:
        q = next(v.network for v in result.variants if v.name == name)
        sections += [
            section("Weights and their codes", picture(weight_histograms(model, q.program.layers),
                    "Each layer's float weights as a histogram. The ticks below are the grid: one for each int8 code, taller where weights use it.")),
            section("Observed ranges", picture(ranges(q.program),
                    "What calibration saw at each place, as the grid of 8-bit codes covers it; the dot is the zero point.")),
            section("One neuron, worked out", neuron_steps(model, q, name, result)),
        ]
    title = f"quantspec: {html.escape(result.dataset.name)} in 8 bits"
    best = max((v.compression for v in result.variants), default=1)
    lead = (f"A network of {sum(p.numel() for p in model.parameters()):,} parameters, quantized {len(result.variants) - 1} ways, up to "
            f"{best:.2f} times smaller, tested on {len(result.dataset.x_test):,} images.")
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,"><title>{title}</title><style>{STYLE}</style></head><body>'
            f"<h1>{title}</h1><p>{lead} {html.escape(result.dataset.note)}</p>{''.join(sections)}</body></html>\n")


def section(title: str, body: str, note: str = "") -> str:
    return f"<h2>{title}</h2>{f'<p class=soft>{note}</p>' if note else ''}{body}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]], tall: bool = False) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    top = "".join(f"<th>{cell}</th>" for cell in head)
    return f'<div class="scroll{" tall" if tall else ""}"><table><thead><tr>{top}</tr></thead><tbody>{cells}</tbody></table></div>'


def picture(figure: plt.Figure, caption: str) -> str:
    """A figure as an inline SVG image with its caption, which is also its alternative text."""
    data = io.BytesIO()
    figure.savefig(data, format="svg", bbox_inches="tight")
    plt.close(figure)
    source = base64.b64encode(data.getvalue()).decode()
    return f'<figure><img alt="{html.escape(caption)}" src="data:image/svg+xml;base64,{source}"><figcaption>{html.escape(caption)}</figcaption></figure>'


def variants_table(result: Result) -> str:
    base, rows = result.variants[0], []
    sizes = list(base.latency_us)
    for v in result.variants:
        change = "" if v is base else f"{100 * (v.accuracy - base.accuracy):+.2f} pp"
        speed = [f"{v.latency_us[s]:,.0f} ({base.latency_us[s] / v.latency_us[s]:.2f}x)" for s in sizes]
        rows.append([v.name, f"{v.accuracy:.2%}", change, f"{v.bytes:,}", f"{v.compression:.2f}x", *speed])
    return table(["variant", "accuracy", "change", "bytes", "compression", *(f"batch {s}" for s in sizes)], rows)


def equality_table(result: Result) -> str:
    layers, rows = list(dict.fromkeys(r.layer for r in result.equality)), []
    for engine, variant in dict.fromkeys((r.engine, r.variant) for r in result.equality):
        cells = []
        for r in (r for r in result.equality if (r.engine, r.variant) == (engine, variant)):
            kind = "bad" if r.differ else "good"
            cells.append(f"not offered: {html.escape(r.reason)}" if r.reason else f'<span class="{kind}">{r.differ:,}</span> / {r.codes:,}')
        rows.append([engine, variant, *cells, " or ".join(result.dialects.get(engine, ()))])
    return table(["engine", "variant", *layers, "dialect"], rows, tall=True)


def axes(width: float, height: float, **grid) -> tuple[plt.Figure, np.ndarray]:
    """A figure without top and right frame lines."""
    figure, all_axes = plt.subplots(figsize=(width, height), squeeze=False, **grid)
    for ax in all_axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(colors=INK, labelsize=9)
    return figure, all_axes


def per_digit(result: Result) -> plt.Figure:
    labels = result.dataset.y_test.numpy()
    figure, ((ax,),) = axes(5.4, 2.6)
    shades = plt.get_cmap("YlOrBr")(np.linspace(0.35, 0.9, max(1, len(result.variants) - 1)))
    width = 0.8 / len(result.variants)
    for i, v in enumerate(result.variants):
        right = [(v.predictions[labels == d] == d).mean() * 100 if (labels == d).any() else 0 for d in range(10)]
        ax.bar(np.arange(10) + (i + 0.5) * width - 0.4, right, width, label=v.name, color=FLOAT if i == 0 else shades[i - 1])
    lowest = min(p.get_height() for p in ax.patches)
    ax.set(xticks=range(10), xlabel="digit", ylabel="right, %", ylim=(max(0, lowest - 3), 100))
    ax.legend(fontsize=8, ncols=3, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def weight_histograms(model: nn.Module, layers) -> plt.Figure:
    weights = {path: m.weight.detach().numpy().ravel() for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    figure, all_axes = axes(5.4, 2 * len(layers), nrows=len(layers), gridspec_kw={"hspace": 0.55})
    for (ax,), step in zip(all_axes, layers):
        scale = float(step.w_qparams.scale.max())
        used = np.bincount(step.weight.ravel().astype(int) + 128, minlength=256)
        heights, _, _ = ax.hist(weights[step.layer], bins=120, color=FLOAT, alpha=0.75)
        grid = (np.arange(256) - 128) * scale
        # Logarithmic, so that codes which occur once can be seen beside those which occur thousands of times.
        depth = np.where(used > 0, 0.06 + 0.2 * np.log1p(used) / np.log1p(used.max()), 0.02)
        ax.vlines(grid, -depth * heights.max(), 0, color=INT8, linewidth=0.7)
        ax.set_title(f"{step.layer}: scale {scale:.6g}, {np.count_nonzero(used)} of 256 codes used", fontsize=10, loc="left", color=INK)
        ax.set(yticks=[], xlabel="weight")
        ax.spines["left"].set_visible(False)
    return figure


def ranges(program) -> plt.Figure:
    places = [("input", s.qparams) for s in program.steps if isinstance(s, Quantize)]
    places += [(s.layer, s.y_qparams) for s in program.layers if isinstance(s, Linear)]
    figure, ((ax,),) = axes(5.4, 0.6 * len(places) + 0.8)
    for row, (_, grid) in enumerate(places):
        low, high = (float(grid.scale) * (end - int(grid.zero_point)) for end in (grid.qmin, grid.qmax))
        ax.plot([low, high], [row, row], color=INT8, linewidth=6, solid_capstyle="butt")
        ax.plot([0], [row], "o", color=INK, markersize=5)
        ax.annotate(f"{low:.3g} .. {high:.3g}, scale {float(grid.scale):.4g}, zero point {int(grid.zero_point)}", (low, row),
                    xytext=(0, 8), textcoords="offset points", fontsize=8, color=INK)
    ax.set(yticks=range(len(places)), yticklabels=[name for name, _ in places], xlabel="real value", ylim=(-0.5, len(places) - 0.2))
    ax.invert_yaxis()
    return figure


def neuron_steps(model: nn.Module, q, name: str, result: Result) -> str:
    """One output of the last layer for the first test image: every number between its inputs and its code."""
    n = neuron.work_out(q, model, result.dataset.x_test[:1])
    order = np.argsort(-np.abs(n.products))
    rows = [
        [str(i), str(n.x_codes[i]), f"{n.x_codes[i] - n.x_zero:+d}", str(n.w_codes[i]), f"{n.products[i]:+,}",
         f"{n.products[i] * float(n.unit):+.5f}"]
        for i in order
    ]
    rule = "rounded, ties to even"
    steps = [
        f"The layer <code>{html.escape(n.layer)}</code> of <code>{name}</code> is given {len(n.x_codes)} codes. "
        f"Its input has scale s_x = <code>{n.x_scale:.9g}</code> and zero point z_x = <code>{n.x_zero}</code>; this neuron's weights have "
        f"scale s_w = <code>{n.w_scale:.9g}</code> and zero point 0. Every product (q_x - z_x) * q_w, largest first:"
        + table(["input", "q_x", "q_x - z_x", "q_w", "product", "real value"], rows, tall=True),
        f"The products add up to <code>{n.total:,}</code>, in units of s_x * s_w = <code>{float(n.unit):.9g}</code>.",
        f"The bias <code>{n.bias:.9g}</code> is <code>{n.bias / float(n.unit):,.3f}</code> units, {rule}: <code>{n.bias_code:,}</code>. The accumulator is "
        f"<code>{n.total:,} + {n.bias_code:,} = {n.accumulator:,}</code>, the real value <code>{n.accumulator * float(n.unit):.7g}</code>.",
        f"The output has scale s_y = <code>{n.y_scale:.9g}</code> and zero point z_y = <code>{n.y_zero}</code>, so the multiplier is M = s_x * s_w / s_y = "
        f"<code>{float(n.multiplier):.9g}</code>. Jacob et al. write it as 2<sup>-{n.shift}</sup> * {float(n.multiplier * 2**n.shift):.9g}.",
        f"M * accumulator = <code>{float(n.multiplier * n.accumulator):.6f}</code>, {rule}: <code>{n.steps}</code>. Plus the zero point: <code>{n.steps} + {n.y_zero} = "
        f"{n.steps + n.y_zero}</code>, saturated to {n.y_qmin}..{n.y_qmax}: the code is <strong>{n.code}</strong>.",
        f"Dequantized: {n.y_scale:.7g} * ({n.code} - {n.y_zero}) = <code>{n.real:.7g}</code>. The float network gives <code>{n.float_value:.7g}</code>.",
    ]
    beside = [[html.escape(engine), html.escape(dialect), str(ours), str(torchs), "equal" if ours == torchs else '<span class="bad">differs</span>']
              for engine, dialect, ours, torchs in n.beside_torch()]
    note = (f"Neuron {n.index} of <code>{html.escape(n.layer)}</code>, for the first test image, a {int(result.dataset.y_test[0])}. "
            "Each step is the clause INT-LINEAR of chapter 3.")
    end = "<p>The same neuron, given the same input codes, scales and weights, in torch's kernels and in our arithmetic of their dialects:</p>"
    return (f"<p>{note}</p><ol class=steps>{''.join(f'<li>{s}</li>' for s in steps)}</ol>{end}"
            + table(["engine", "dialect", "our code", "torch's code", ""], beside))
