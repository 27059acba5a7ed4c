"""The estimate of a part's mutation score by mutants that are drawn from it."""

import io
import json
import math
import shutil
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mutants import __main__ as command
from mutants import run, sample
from mutants.run import Change, Mutant, Verdict
from mutants.sample import Sample
from told import exactly

NAMES = [f"quantspec.numerics.affine.x_along__mutmut_{number}" for number in range(1, 31)]


def mutant(status, name=NAMES[0], change=None):
    """A mutant of the function ``along``."""
    return Mutant("numerics.affine", name, status, change)


def sampled(part, size, killed, equivalent, unexplained):
    """A sample of a part, of which so many were killed and so on."""
    kinds = [[mutant("killed")] * killed, [], [mutant("survived")] * equivalent, [mutant("survived")] * unexplained]
    return Sample(part, size, Verdict(*kinds, []))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 2**64))
def test_a_larger_sample_of_a_seed_begins_with_the_smaller_one(small, more, seed):
    drawn = sample.draw(NAMES, small, seed)
    assert len(set(drawn)) == min(small, len(NAMES)) and set(drawn) <= set(NAMES)
    assert sample.draw(reversed(NAMES), small + more, seed)[:small] == drawn


def test_every_mutant_is_drawn_as_often_as_any_other():
    counts = Counter(name for seed in range(3000) for name in sample.draw(NAMES, 10, seed))
    # Each is drawn 1000 times on average, with a deviation of sqrt(3000 * 1/3 * 2/3) = 26: six of them are never seen.
    assert counts.keys() == set(NAMES) and all(abs(count - 1000) < 6 * 26 for count in counts.values())


# Of tables of the interval, to the digits that stand there.
@pytest.mark.parametrize(
    ("hits", "tries", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (95, 100, 0.8882, 0.9785)]
)
def test_the_interval_is_wilsons(hits, tries, low, high):
    assert [round(bound, 4) for bound in sample.interval(hits, tries)] == [low, high]


@given(st.integers(1, 500).flatmap(lambda tries: st.tuples(st.integers(0, tries), st.just(tries))))
def test_at_the_ends_of_the_interval_the_hits_are_as_far_off_as_is_still_usual(found):
    hits, tries = found
    low, high = sample.interval(hits, tries)
    assert low <= hits / tries <= high
    for bound in {low, high} - {0.0, 1.0}:
        off = abs(hits - tries * bound) / math.sqrt(tries * bound * (1 - bound))
        assert math.isclose(off, 1.96, rel_tol=1e-4)  # the deviates have four digits here
    assert (low == 0.0, high == 1.0) == (hits == 0, hits == tries)


def test_of_nothing_tried_nothing_is_known():
    assert sample.interval(0, 0) == (0.0, 1.0)


def test_the_table_has_the_score_with_the_equivalent_mutants_and_without_them():
    samples = [sampled("numerics.affine", 100, 8, 2, 0), sampled("storage", 300, 9, 0, 1)]
    text = io.StringIO()
    Console(file=text, width=200).print(sample.table(samples))
    rows = [line.replace("│", " ").split() for line in text.getvalue().splitlines() if " % " in line]
    # Of all 400, the first part's 80 % of 100 and the second's 90 % of 300 are 350; 20 of the first are equivalent.
    assert rows[-3:] == [
        ["numerics.affine", "100", "10", "8", "0", "2", "0", "80.0", "%", "100.0", "%", "67.6", "to", "100.0", "%"],
        ["storage", "300", "10", "9", "0", "0", "1", "90.0", "%", "90.0", "%", "59.6", "to", "98.2", "%"],
        ["all", "400", "20", "17", "0", "2", "1", "87.5", "%", "92.1", "%"],
    ]


def test_the_last_line_counts_the_mutants_of_all_samples():
    verdict = sample.together([sampled("numerics.affine", 100, 8, 2, 0), sampled("storage", 300, 9, 0, 1)])
    assert verdict.last_line() == "mutants: 17 of 20 killed, 2 equivalent, 1 unexplained"


def test_entries_that_were_not_drawn_are_not_stale(monkeypatch):
    listed = {Change("numerics.affine", "along", "a", after): "so it is" for after in ("b", "c")}
    tried = [mutant("survived", change=change) for change in list(listed)[:1]]
    monkeypatch.setattr(sample, "attack", lambda *_, anew: (100, tried))
    found = sample.estimate("numerics.affine", listed, 1, 0, 2, anew=False)
    assert (found.size, found.verdict) == (100, Verdict([], [], tried, [], []))


class Mutmut:
    """Stands for mutmut: its mutants, each of which is killed when it is tried."""

    def __init__(self, monkeypatch, folder):
        monkeypatch.setattr(run, "WORK", folder)
        for name in ("prepare", "run_mutmut", "results"):
            monkeypatch.setattr(run, name, getattr(self, name))
        monkeypatch.setattr(run, "with_changes", lambda folder, mutants: list(mutants))
        self.tried: list[list[str]] = []

    def prepare(self, folder, part):
        folder.mkdir(parents=True, exist_ok=True)
        self.status = dict.fromkeys(NAMES, "not checked")

    def run_mutmut(self, folder, workers, names, watch=None):
        self.tried.append(names)
        self.status |= {name: "killed" for name in names if name in self.status}

    def results(self, folder, modules):
        return [mutant(status, name) for name, status in self.status.items()]


def test_what_was_tried_is_kept_for_a_larger_sample(monkeypatch, tmp_path):
    mutmut = Mutmut(monkeypatch, tmp_path)
    for size in (4, 4, 6):
        every, tried = sample.attack("numerics.affine", size, 0, 2, anew=False)
        assert (every, {each.name for each in tried}) == (len(NAMES), set(sample.draw(NAMES, size, 0)))
        assert all(each.status == "killed" for each in tried)
    # The first call only mutates and runs the tests; a sample that is there already runs nothing.
    first, *tries = mutmut.tried
    assert not set(first) & set(NAMES) and [len(names) for names in tries] == [4, 2]


@pytest.mark.parametrize("anew", [False, True])
def test_a_part_that_changed_is_tried_again(monkeypatch, tmp_path, anew):
    mutmut = Mutmut(monkeypatch, tmp_path)
    sample.attack("storage", 4, 0, 2, anew=False)
    if not anew:
        monkeypatch.setattr(run, "state", lambda part: f"another {part}")
    sample.attack("storage", 4, 0, 2, anew=anew)
    assert [len(names) for names in mutmut.tried] == [1, 4, 1, 4]


def test_a_part_is_another_one_where_a_module_or_a_test_of_it_or_what_is_left_out_changes(monkeypatch, tmp_path):
    for folder in ("impl/quantspec/module", "tests"):
        shutil.copytree(run.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(run, "ROOT", tmp_path)
    states = [run.state("module")]
    changed = [tmp_path / "impl" / "quantspec" / run.path_of(module) for module in run.modules_of("module")]
    for path in (*changed, *(tmp_path / "tests" / name for name in run.tests_of("module"))):
        path.write_text("", encoding="utf-8")
        states.append(run.state("module"))
    monkeypatch.setitem(run.LEFT_OUT, "module", ("output/test_tables.py::test_that_fails",))
    states.append(run.state("module"))
    assert len(set(states)) == len(states) > len(run.tests_of("module"))


def test_all_modules_of_a_room_are_mutated_together_and_tried_on_its_tests():
    settings = run.settings_of("ptq")
    lines = [line.strip() for line in settings.splitlines()]
    paths = [line for line in lines if line.startswith("src/quantspec/ptq/")]
    assert paths == [f"src/quantspec/{name.replace('.', '/')}.py" for name in run.modules_of("ptq")] and len(paths) > 1
    assert [line for line in lines if line.startswith("tests/") and "::" not in line] == [
        f"tests/{name}" for name in run.ROOMS["ptq"]
    ]


def test_progress_is_told_where_there_is_any(tmp_path, capsys):
    kept = tmp_path / "mutants" / "src" / "quantspec" / "numerics" / "affine.py.meta"
    kept.parent.mkdir(parents=True)
    tell = sample.progress(tmp_path, ["numerics.affine"], NAMES[:3])
    for codes in ({}, {NAMES[0]: 1, NAMES[1]: None}, {NAMES[0]: 1}, {NAMES[0]: 1, NAMES[2]: 0, NAMES[9]: 1}):
        kept.write_text(json.dumps({"exit_code_by_key": codes}), encoding="utf-8")
        tell()
    kept.write_text('{"exit_', encoding="utf-8")  # half written
    tell()
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path.name}: 1 of 3 tried", f"{tmp_path.name}: 2 of 3 tried"]


def test_a_sample_is_of_all_parts():
    assert command.parse(["--sample", "5"]).parts == [*run.TESTS, *run.ROOMS]
    assert command.parse([]).parts == list(run.TESTS)
    assert command.parse(["--sample", "5", "ptq"]).parts == ["ptq"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sample", "0"], "argument --sample: expected at least 1, got 0"),
        (["--sample", "5", "--since", "HEAD"], "argument --since: not allowed with argument --sample"),
    ],
)
def test_options_that_make_no_sample_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit, match=exactly("2")):
        command.parse(arguments)
    assert capsys.readouterr().err.splitlines()[-1] == f"make mutants: error: {message}"


def test_the_exit_code_says_whether_a_survivor_is_unexplained(monkeypatch, capsys):
    for unexplained, code in ((0, 0), (1, 1)):
        found = sampled("storage", 300, 99, 0, unexplained)
        monkeypatch.setattr(sample, "estimate", lambda *_, anew, found=found: found)
        monkeypatch.setattr(run, "account", lambda verdict, reasons: [f"{verdict.total} are accounted for"])
        assert command.main(["--sample", "100", "storage"]) == code
        out = capsys.readouterr().out.splitlines()
        assert out[0] == f"{99 + unexplained} are accounted for"
        assert out[-1] == f"mutants: 99 of {99 + unexplained} killed, 0 equivalent, {unexplained} unexplained"
