"""The account of a complete run: each thing that can be missing is said, with the clause and with what to do."""

import dataclasses

import pytest

import account
import coverage_page
import review
from account import Entry, Lock, Result
from quantspec import chapters

TIES = chapters.clauses()["AFF-TIES"]
FILE = "tests/chapters/test_all.py"


def perfect() -> tuple[list[Result], Lock]:
    """A run in which every clause has a test that passed and every block ran, and the lock that fits it."""
    results = [Result(f"{FILE}::test_{id_}[8]", (id_,), "passed", ("codes",), 10) for id_ in chapters.clauses()]
    for stem in chapters.stems():
        name, blocks = chapters.chapter(stem).path.name, chapters.chapter(stem).blocks
        results += [Result(f"spec/{name}::line:{b.line}", (), "passed", block=(name, b.line - 1)) for b in blocks]
    tests = {id_: [f"{FILE}::test_{id_}"] for id_ in chapters.clauses()}
    entries = {id_: Entry(clause.digest, tests[id_]) for id_, clause in chapters.clauses().items()}
    return results, Lock(entries, {stem: chapters.chapter(stem).examples for stem in chapters.stems()})


def changed(results: list[Result], clause: str, **changes) -> list[Result]:
    """The results, those of one clause with these fields."""
    return [dataclasses.replace(result, **changes) if clause in result.clauses else result for result in results]


def without(results: list[Result], clause: str) -> list[Result]:
    """The results but those of one clause."""
    return [result for result in results if clause not in result.clauses]


def test_nothing_is_said_of_a_perfect_run():
    assert account.complaints(*perfect()) == []


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_a_clause_without_a_test_that_passed_is_named(outcome):
    results, lock = perfect()
    (line,) = account.complaints(changed(results, "AFF-TIES", outcome=outcome), lock)
    assert line == f"AFF-TIES: no test of it ran and passed ({FILE}::test_AFF-TIES[8] {outcome})."


def test_a_deleted_test_is_named_with_its_clause():
    results, lock = perfect()
    lines = account.complaints(without(results, "AFF-TIES"), lock)
    assert lines[0] == "AFF-TIES: no test of it ran and passed (there is none)."
    assert lines[1].startswith(f"AFF-TIES: its tests are not those that were reviewed: {FILE}::test_AFF-TIES is gone.")
    assert lines[1].endswith("`make review CLAUSE=AFF-TIES`.") and len(lines) == 2


def test_one_of_several_tests_cannot_vanish_either_and_a_new_one_is_to_be_read():
    results, lock = perfect()
    lock.clauses["AFF-TIES"].tests.append(f"{FILE}::test_another")
    (line,) = account.complaints(results, lock)
    assert line.startswith("AFF-TIES: ") and "test_another is gone" in line
    results, lock = perfect()
    (line,) = account.complaints([*results, Result(f"{FILE}::test_new", ("AFF-TIES",), "passed")], lock)
    assert line.startswith("AFF-TIES: ") and "test_new is new" in line


def test_a_test_of_the_specification_must_name_a_clause_and_others_need_not():
    results, lock = perfect()
    extra = [Result(f"{FILE}::test_idle[1]", (), "passed"), Result("tests/meta/test_all.py::test_idle", (), "passed")]
    (line,) = account.complaints([*results, *extra], lock)
    assert line.startswith(f"{FILE}::test_idle: names no clause.")


def test_an_unknown_clause_is_named_with_the_nearest_known_one():
    results, lock = perfect()
    (line,) = account.complaints([*results, Result(f"{FILE}::test_x", ("AFF-TIE",), "passed")], lock)
    assert line == f"AFF-TIE: no chapter has this clause (did you mean AFF-TIES?), but {FILE}::test_x names it."


def test_a_reworded_clause_sends_its_tests_to_be_read_again():
    results, lock = perfect()
    lock.clauses["AFF-TIES"].sentence = "0" * 16
    (line,) = account.complaints(results, lock)
    assert line.startswith("AFF-TIES: its sentence changed") and "test_AFF-TIES" in line
    assert "`make review CLAUSE=AFF-TIES`" in line


def test_a_new_clause_is_issued_and_a_deleted_one_is_missed():
    results, lock = perfect()
    del lock.clauses["AFF-TIES"]
    (line,) = account.complaints(results, lock)
    assert line == "AFF-TIES: a new clause. `make review CLAUSE=AFF-TIES` issues its id for good."
    lock = perfect()[1]
    lock.clauses["AFF-GONE"] = Entry("0" * 16, [])
    (line,) = account.complaints(results, lock)
    assert line.startswith("AFF-GONE: the clause is gone from its chapter. Ids are permanent")


def test_a_withdrawn_id_is_never_used_again():
    results, lock = perfect()
    lock.clauses["AFF-TIES"].withdrawn = "it said too little"
    (line,) = account.complaints(results, lock)
    withdrawn = "AFF-TIES: this id was withdrawn (it said too little) and must not be used again."
    assert line == f"{withdrawn} Give the clause another one."
    lock = perfect()[1]
    lock.clauses["AFF-GONE"] = Entry("0" * 16, [], "it said too little")
    assert account.complaints(results, lock) == []


@pytest.mark.parametrize("change", [{"outcome": "skipped"}, {"block": None}])
def test_a_block_that_did_not_run_is_named_with_its_clause(change):
    results, lock = perfect()
    block = next(b for b in chapters.chapter("affine").blocks if b.clause == "AFF-TIES")
    place = ("01-affine.md", block.line - 1)
    spoilt = [dataclasses.replace(result, **change) if result.block == place else result for result in results]
    (line,) = account.complaints(spoilt, lock)
    assert line == f"spec/01-affine.md:{block.line}: this pycon block was not run (under AFF-TIES)."


@pytest.mark.parametrize("more", [-1, 1])
def test_examples_neither_vanish_nor_come_unseen(more):
    results, lock = perfect()
    lock.examples["affine"] += more
    (line,) = account.complaints(results, lock)
    assert line.startswith("chapter affine: it had ") and line.endswith("`make review EXAMPLES=affine`.")


def test_a_test_that_turns_down_what_is_drawn_for_it_is_named():
    results, lock = perfect()
    assert account.complaints(changed(results, "AFF-TIES", examples=100, filtered=25), lock) == []
    (line,) = account.complaints(changed(results, "AFF-TIES", examples=100, filtered=26), lock)
    assert line.startswith(f"{FILE}::test_AFF-TIES[8]: turns down 26 of 100 drawn examples.")


def test_the_lock_is_read_back_as_it_was_written(tmp_path):
    lock = perfect()[1]
    lock.clauses["AFF-GONE"] = Entry("0" * 16, [], 'it "said" too little')
    path = tmp_path / "clauses.lock"
    account.write_lock(path, lock)
    assert account.read_lock(path) == lock
    assert account.read_lock(tmp_path / "none") == Lock({}, {})
    path.write_text("[AFF-TIES\n")
    with pytest.raises(ValueError, match="clauses.lock: "):
        account.read_lock(path)


def test_reviewing_records_the_sentence_and_the_tests():
    lock, tests = Lock({}, {}), {"AFF-TIES": ["tests/b.py::two", "tests/a.py::one"], "AFF-NAN": ["tests/a.py::one"]}
    records = review.review(lock, ["AFF-TIES", "AFF-N?N"], tests, "", ["affine"])
    ties = Entry(TIES.digest, ["tests/a.py::one", "tests/b.py::two"])
    assert lock.clauses == {"AFF-TIES": ties, "AFF-NAN": lock.clauses["AFF-NAN"]}
    assert lock.examples == {"affine": chapters.chapter("affine").examples}
    assert TIES.sentence in records[0] and len(records) == 3


@pytest.mark.parametrize(
    ("patterns", "withdraw", "message"),
    [
        (["AFF-NONE"], "", "neither the chapters nor the lock have AFF-NONE"),
        (["AFF-NAN"], "", "AFF-NAN has no test to be reviewed"),
        (["AFF-TIES"], "why", "AFF-TIES still stands in chapter affine"),
        (["AFF-GONE"], "", "AFF-GONE is gone from its chapter; say why"),
        (["AFF-OLD"], "again", "AFF-OLD was withdrawn .because. and cannot come back"),
    ],
)
def test_a_review_of_what_cannot_be_reviewed_is_refused(patterns, withdraw, message):
    lock = Lock({"AFF-GONE": Entry("0" * 16, ["tests/a.py::one"]), "AFF-OLD": Entry("0" * 16, [], "because")}, {})
    with pytest.raises(ValueError, match=message):
        review.review(lock, patterns, {"AFF-TIES": ["tests/a.py::one"]}, withdraw, [])


def test_withdrawing_keeps_the_id_and_the_reason():
    lock = Lock({"AFF-GONE": Entry("0" * 16, ["tests/a.py::one"])}, {})
    records = review.review(lock, ["AFF-GONE"], {}, "it said too little", [])
    assert records == ["AFF-GONE: withdrawn: it said too little"]
    assert lock.clauses == {"AFF-GONE": Entry("0" * 16, [], "it said too little")}


def test_the_page_has_a_row_for_each_clause_and_goes_stale_with_what_it_says(tmp_path):
    results, _ = perfect()
    rows = coverage_page.clause_rows(results, {"AFF-TIES": ["ties-away"]})
    page = coverage_page.render(rows)
    assert "| AFF-TIES · Ties go to even | 1 | exhaustive over codes, sampled 10 | ties-away |" in page
    assert [row.id for row in rows] == list(chapters.clauses())
    (tmp_path / "spec").mkdir()
    assert coverage_page.is_stale(tmp_path, page)
    (tmp_path / "spec" / "coverage.md").write_text(page.replace("sampled 10", "sampled 1200"))
    assert not coverage_page.is_stale(tmp_path, page)
    (tmp_path / "spec" / "coverage.md").write_text(page.replace("ties-away", ""))
    assert coverage_page.is_stale(tmp_path, page)
