"""The recorded speeds, and the page that is made of them. Nothing is measured here."""

import pytest
import torch
from torch import nn

from bench import page, results, rows
from quantspec import chapters

SPEC = chapters.directory()
RUNS = results.recorded(SPEC)
RECORDED = RUNS[0]
of_each_machine = pytest.mark.parametrize("run", RUNS, ids=results.machine_name)


def test_pages_and_charts_are_what_the_records_say():
    """`make bench ARGS=--bench-write` writes all of them."""
    for name, content in results.made(RUNS).items():
        assert (SPEC / name).read_text(encoding="utf-8") == content


@of_each_machine
def test_a_record_is_called_as_its_machine(run):
    assert (SPEC / results.FOLDER / f"{results.machine_name(run)}.json").read_text() == results.text(run)


def test_the_short_chart_is_told_as_that_of_its_machine():
    assert f"One thread of an {page.title(RECORDED)}" in (SPEC.parent / "README.md").read_text(encoding="utf-8")


def test_a_run_takes_the_place_of_its_machines_alone(tmp_path):
    machine = RECORDED["machine"]
    other = RECORDED | {"machine": machine | {"cpu": "Some CPU, family 1 model 2, dot products of 32 bytes", "load": 2}}
    for run in (RECORDED, other, RECORDED | {"rows": RECORDED["rows"][:1]}):
        results.write(tmp_path, run)
    assert {run["machine"]["cpu"]: run for run in results.recorded(tmp_path)} == {
        each["machine"]["cpu"]: each for each in (RECORDED, other)
    }
    written = (tmp_path / results.PAGE).read_text(encoding="utf-8")
    assert f"## {page.title(RECORDED)}\n" in written and "## Some CPU\n" in written
    assert "its load average was 2 before the run" in written
    assert (tmp_path / results.FOLDER / "some-cpu-family-1-model-2.md").exists()


def test_the_page_prints_targets_and_marks_rows_in_which_a_peer_is_faster():
    row = RECORDED["rows"][0]
    slower = row | {"vs_int8": 0.66, "targets": row["targets"] | {"vs_int8": 1.1}}
    run = RECORDED | {"rows": [slower, row | {"threads": 2}]}
    written = page.of_machine(run)
    assert "**0.66**" in written and "1.1x int8" in written and "0.66 of 1.10 times int8" in written
    assert f"A peer is faster in 1 row: {row['row']}, 1 thread (0.66)." in page.markdown([run])
    assert "## Networks, 1 thread\n" in written and "## Networks, 2 threads\n" in written


def test_the_page_says_where_a_float_network_is_computed_in_bfloat16():
    row = RECORDED["rows"][0]
    rounded = row | {"ours_us": 10.0, "peers_us": row["peers_us"] | {page.BFLOAT16: 8.0}}
    run = RECORDED | {"rows": [rounded]}
    assert "in bfloat16 here: int8 is 0.80 to 0.80 times as fast as that" in page.markdown([run])
    assert "| **0.80** |" in page.of_machine(run)
    assert "in bfloat16 here" not in page.markdown([RECORDED | {"rows": [row | {"peers_us": {}}]}])


@of_each_machine
def test_ratios_are_those_of_the_times_beside_them(run):
    for row in run["rows"]:
        for best, ratio in (("best_float32", "vs_float32"), ("best_int8", "vs_int8")):
            if row[best] is None:  # nobody else runs it so
                assert row[ratio] is None
                continue
            name, time = row[best]
            assert row["peers_us"][name] == time
            assert abs(row[ratio] * row["ours_us"] / time - 1) < 2e-3  # each has four digits


def test_a_slower_row_that_promises_otherwise_is_named():
    row = RECORDED["rows"][0]
    slower = row | {"vs_float32": 0.9}
    assert results.broken_promises({"rows": [slower]})
    assert not results.broken_promises({"rows": [slower | {"promises": False}, row | {"vs_float32": 1.0}]})


def test_rows_that_are_measured_again_take_their_place_and_the_machine_is_that_of_all_rows():
    first, *others = RECORDED["rows"]
    faster, idle = first | {"ours_us": 1.0}, RECORDED["machine"] | {"load": 0.0, "peak_gmacs": 1.0}
    again = RECORDED | {"rows": [faster], "measures": [], "machine": idle}
    part = results.merged(RECORDED, again)
    assert part["rows"] == [faster, *others]
    assert part["measures"] == RECORDED["measures"] and part["machine"] == RECORDED["machine"]
    whole = results.merged(RECORDED, again | {"rows": [faster, *others], "measures": RECORDED["measures"]})
    assert whole["machine"] == again["machine"]


def test_the_work_of_attention_is_that_of_its_projections_and_of_its_scores():
    steps, features, wide = 7, 8, 24
    model = nn.TransformerEncoderLayer(features, 2, wide, batch_first=True).eval()
    in_layers = steps * (4 * features**2 + 2 * features * wide)
    assert rows.work(model, torch.randn(1, steps, features), 0).macs == in_layers + 2 * steps**2 * features
