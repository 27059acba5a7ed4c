"""What a comparison shows of itself: the whole text, the data for JSON, and the chart."""

import json
import math
import sys
from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from quantspec.comparison.result import Comparison, LayerRow
from quantspec.errors import MissingExtraError
from told import exactly

LONG = "encoder.blocks.10.attention.projection"
ROWS = (
    LayerRow("first", 31.26, 1_234_567, 4_321, True, ""),
    LayerRow(LONG, 19.04, 20, 44, True, ""),
    LayerRow("last", math.inf, 30, 124, False, "excluded"),
)
FOUND = Comparison(ROWS, 18.25, LONG, 20.0, 50_000, 12_345, 0.9876, 1_000)
TABLE = """\
int8 beside float32, 1000 examples

 layer                   SQNR, dB           MACs   bytes
 ──────────────────────────────────────────────────────────────────────
 first                       31.3      1,234,567   4,321
 encoder.blocks.10.          19.0             20      44  below 20 dB
   attention.projection
 last                         inf             30     124  float32

 output                      18.2  98.8% in int8  12,345  4.05x smaller
"""
PARTED = f"""\
{LONG} is the first layer whose SQNR is below
  20 dB.
"""
IN_FLOAT = """\
in float32:
  excluded:
    last"""
ANSWERS = """
accuracy 98.77% in float32, 97.65% in int8: a drop of 1.11 points; 12 answers
  changed, at most 2.34% of all (99 % confidence)"""


def test_a_comparison_is_printed_with_each_layer_and_what_follows_from_them():
    assert str(FOUND) == TABLE + PARTED + IN_FLOAT
    assert str(replace(FOUND, parted=None)) == TABLE.replace("  below 20 dB", "") + IN_FLOAT
    whole = replace(ROWS[2], int8=True, reason="")
    without = TABLE.replace("124  float32", "124")
    assert str(replace(FOUND, layers=(*ROWS[:2], whole))) == without + PARTED.rstrip()


def test_a_note_stays_on_one_line_however_wide_the_numbers_are():
    large = replace(ROWS[1], macs=10**16, bytes=10**14)
    text = str(replace(FOUND, layers=(ROWS[0], large, ROWS[2])))
    assert "  below 20 dB\n" in text and "  4.05x smaller\n" in text


def test_the_answers_that_changed_are_printed_where_both_accuracies_are_known():
    counted = replace(FOUND, float_accuracy=0.98765, int8_accuracy=0.97654, changed=12, changed_at_most=0.0234)
    assert str(counted) == TABLE + PARTED + IN_FLOAT + ANSWERS
    for unknown in ("float_accuracy", "int8_accuracy"):
        assert str(replace(counted, **{unknown: None})) == str(FOUND)


def test_a_comparison_as_json_is_read_back_with_infinities_as_words():
    shown = FOUND.as_json()
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert shown["layers"] == [
        {"layer": "first", "sqnr": 31.26, "macs": 1_234_567, "bytes": 4_321, "int8": True, "reason": ""},
        {"layer": LONG, "sqnr": 19.04, "macs": 20, "bytes": 44, "int8": True, "reason": ""},
        {"layer": "last", "sqnr": "inf", "macs": 30, "bytes": 124, "int8": False, "reason": "excluded"},
    ]
    assert {key: value for key, value in shown.items() if key != "layers"} == {
        "sqnr": 18.25, "parted": LONG, "threshold": 20.0, "float_bytes": 50_000, "int8_bytes": 12_345,
        "int8_macs": 0.9876, "examples": 1_000, "float_accuracy": None, "int8_accuracy": None, "changed": None,
        "changed_at_most": None, "compression": 50_000 / 12_345,
    }  # fmt: skip
    odd = replace(FOUND, sqnr=math.nan, threshold=-math.inf, int8_bytes=0).as_json()
    assert (odd["sqnr"], odd["threshold"], odd["compression"]) == ("nan", "-inf", "inf")


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws the chart of a comparison into a file; gives the figure and the path."""
    saved, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: [saved.append(self), save(self, *args, **kw)])

    def draw(found, name="chart.png"):
        found.plot(tmp_path / name)
        return saved[-1], tmp_path / name

    return draw


def test_a_chart_has_a_bar_for_each_layer_in_order_from_above(drawn):
    figure, path = drawn(FOUND)
    (axes,) = figure.axes
    bars = axes.patches
    assert [bar.get_width() for bar in bars] == [31.26, 19.04, 99.0]  # what is infinite ends at 99 dB
    assert [bar.get_y() + bar.get_height() / 2 for bar in bars] == [0, 1, 2]
    assert list(axes.get_yticks()) == [0, 1, 2] and axes.yaxis_inverted()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", LONG, "last"]
    # What is in int8 is blue, what parted red, and what stayed in float grey.
    blue, red, grey = (tuple(round(each * 255) for each in bar.get_facecolor()[:3]) for bar in bars)
    assert blue[2] > 2 * blue[0] and red[0] > 2 * max(red[1:]) and max(grey) - min(grey) < 32
    assert axes.get_xlabel() == "SQNR in dB, int8 beside float32 (grey: stayed in float)"
    (limit,) = axes.lines
    assert list(limit.get_xdata()) == [20.0, 20.0] and limit.get_linestyle() == ":"
    assert limit.get_linewidth() == 0.8 and limit.get_color() == "#1d2433"


def test_a_chart_is_framed_left_and_below_and_grows_with_the_layers(drawn):
    figure, path = drawn(FOUND)
    (axes,) = figure.axes
    shown = {side: spine.get_visible() for side, spine in axes.spines.items()}
    assert shown == {"left": True, "bottom": True, "right": False, "top": False}
    assert figure.get_layout_engine().__class__.__name__ == "ConstrainedLayoutEngine"
    assert list(figure.get_size_inches()) == [8, 2.5]
    assert {label.get_fontsize() for label in axes.get_yticklabels()} == {7}
    assert axes.margins()[1] == 0.01
    header = path.read_bytes()[16:24]  # of a PNG: width and height, 120 dots per inch
    assert [int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")] == [960, 300]
    many, _ = drawn(replace(FOUND, layers=ROWS * 10), "many.svg")
    assert list(many.get_size_inches()) == [8, 0.22 * 30 + 1.2]


def test_a_chart_without_matplotlib_says_what_brings_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    needs = "a plot of the comparison needs matplotlib, which is not installed"
    with pytest.raises(MissingExtraError, match=exactly(f"{needs}: pip install 'quantspec[plots]'")):
        FOUND.plot(tmp_path / "chart.png")
