"""Tables and reports as text: columns, titles, paths that are broken, reasons that are said once, and shares."""

import pytest

from quantspec.module import printed
from quantspec.module.report import EXCLUDED, Report, Work, percent, report

PATH = "encoder.blocks.10.attention"
RULE = "─"


def table(title="a title", **options):
    made = printed.new_table(title, "layer", "MACs", "bytes", **options)
    made.add_row("first", "1,000", "20")
    made.add_row(printed.at_dots(f"{PATH}.projection"), "5", "3,000")
    return made


def test_a_table_has_words_on_the_left_and_numbers_on_the_right():
    assert (
        printed.printed(table())
        == f"""\
a title

 layer                    MACs  bytes
 {RULE * 36}
 first                   1,000     20
 encoder.blocks.10.          5  3,000
   attention.projection"""
    )
    assert printed.printed(table(left=2)).splitlines()[4] == " first                   1,000     20"
    assert printed.printed(table(left=2)).splitlines()[5] == " encoder.blocks.10.      5      3,000"


def test_a_long_word_is_broken_and_a_number_is_not():
    made = printed.new_table("t", "layer", "MACs")
    made.add_row("a" * 100, "1,000,000")
    lines = printed.printed(made).splitlines()
    assert max(map(len, lines)) <= 79 and "…" not in "".join(lines)
    assert sum(line.count("a") for line in lines[4:]) == 100 and sum("1,000,000" in line for line in lines) == 1


def test_numbers_stay_whole_where_columns_are_many():
    made = printed.new_table("t", "layer", *[f"n{n}" for n in range(6)])
    made.add_row("a" * 30, *["12,345,678"] * 6)
    text = printed.printed(made)
    assert text.count("12,345,678") == 6 and text.count("a") == 31  # and one in "layer"


def test_a_long_title_is_broken_between_words_unless_the_table_is_wide():
    title = " ".join(["words"] * 20)
    narrow, wide = printed.printed(table(title)), printed.printed(table(title), wide=True)
    assert narrow.splitlines()[:2] == [" ".join(["words"] * 13), "  " + " ".join(["words"] * 7)]
    assert wide.splitlines()[0] == title and narrow.splitlines()[2:] == wide.splitlines()[1:]


def test_a_wide_table_has_as_many_columns_as_it_takes():
    made = printed.new_table("t", "layer", left=1)
    made.add_row("a" * 300)
    assert printed.printed(made, wide=True).splitlines()[-1] == " " + "a" * 300
    last = printed.new_table("t", "layer")
    last.add_row("a" * 9_990)
    assert "a" * 9_990 in printed.printed(last, wide=True)


def test_a_path_is_broken_behind_its_dots_where_a_line_is_full():
    assert printed.at_dots("short.path") == "short.path"
    assert printed.at_dots(PATH) == "encoder.blocks.10.\n  attention"
    assert printed.at_dots("a" * 22 + ".b") == "a" * 22 + ".\n  b"
    assert printed.at_dots("a" * 21 + ".b") == "a" * 21 + ".b"  # 23 characters
    assert printed.at_dots("a" * 30 + "." + "b" * 30) == "a" * 30 + ".\n  " + "b" * 30
    assert printed.at_dots("a.b.c.d", 4) == "a.b.\n  c.\n  d"
    assert printed.at_dots("") == ""


def test_reasons_are_said_once_with_the_places_that_they_hold_for():
    reasons = [("a", "one"), ("b", "two"), *((f"layer{n}", "one") for n in range(6)), ("c", "two")]
    assert printed.grouped("because:", reasons) == [
        "because:", "  one (7 times):", "    a, layer0, layer1, layer2, layer3, layer4 and 1 more",
        "  two (2 times):", "    b, c",
    ]  # fmt: skip
    assert printed.grouped("because:", reasons[:2]) == ["because:", "  one:", "    a", "  two:", "    b"]
    six = [(f"l{n}", "why") for n in range(6)]
    assert printed.grouped("t", six) == ["t", "  why (6 times):", "    l0, l1, l2, l3, l4, l5"]
    assert printed.grouped("because:", []) == []


def test_text_is_broken_between_words_with_a_deeper_margin_behind():
    lines = printed.wrapped(" ".join(["word"] * 20), 4)
    assert lines == ["    " + " ".join(["word"] * 15), "      " + " ".join(["word"] * 5)]
    assert printed.wrapped("a" * 100, 2) == ["  " + "a" * 100]
    assert printed.wrapped("half-" * 20 + "done", 0) == ["half-" * 20 + "done"]
    assert printed.wrapped(" ".join(["word"] * 16), 0) == [" ".join(["word"] * 16)]  # 79 columns


ROWS = (
    Work("body.first", 700, "int8", ""), Work("", 20, "Python", "its forward decides"),
    Work("body.second", 200, "float", "no integer form"), Work("head", 50, "float", EXCLUDED),
    Work("body.third", 80, "Python", "its forward decides"),
)  # fmt: skip
MADE = Report(ROWS, True)


def test_a_report_counts_what_is_in_int8_of_what_was_not_excluded():
    assert (MADE.macs, MADE.int8_macs, MADE.excluded_macs, MADE.share) == (1050, 700, 50, 0.7)
    assert [row.path for row in MADE.rest] == ["body.second", "body.third", ""]
    assert (
        Report(ROWS[3:4], True).share == 1.0 and Report((), True).share == 1.0 and Report(ROWS[2:3], True).share == 0.0
    )
    assert Report(ROWS[:1], True).rest == []


def test_a_report_is_data_too():
    assert MADE.as_tuples() == (tuple((row.path, row.macs, row.place, row.reason) for row in ROWS), True)
    rows = tuple({"path": w.path, "macs": w.macs, "place": w.place, "reason": w.reason} for w in ROWS)
    assert MADE.as_json() == {"rows": rows, "counted": True}


def test_a_report_is_printed_with_every_module_and_every_reason():
    assert (
        str(MADE)
        == f"""\
70.0% of 1,000 multiply-accumulates in int8; 50 more are excluded

 module       computed in  MACs
 {RULE * 30}
 body.first   int8          700
 the model    Python         20
 body.second  float         200
 head         float          50
 body.third   Python         80
not in int8:
  its forward decides (2 times):
    the model, body.third
  no integer form:
    body.second
  excluded:
    head"""
    )
    whole = Report((Work("body.attention.output.of.all.the.heads.dense", 2_000_000, "int8", ""),), True)
    assert (
        str(whole)
        == f"""\
100.0% of 2,000,000 multiply-accumulates in int8

 module                                   computed in       MACs
 {RULE * 63}
 body.attention.output.of.all.the.heads.  int8         2,000,000
   dense"""
    )


def test_a_sentence_says_the_share_and_where_the_rest_is():
    rest = "body.second (20 %, float: no integer form); body.third (8 %, Python: its forward decides)"
    last = "the model (2 %, Python: its forward decides)"
    assert MADE.sentence() == f"70 % of the multiply-accumulates are in int8; the rest: {rest}; {last}"
    more = Report((*ROWS, Work("x", 10, "float", "why"), Work("y", 15, "float", "why")), False)
    assert more.sentence() == (
        "68 % of the multiply-accumulates are in int8, counted for one row of each layer's input; the rest: "
        "body.second (20 %, float: no integer form); body.third (8 %, Python: its forward decides);"
        " the model (2 %, Python: its forward decides); 2 others (2 %)"
    )


def test_a_share_is_never_told_as_more_than_it_is():
    nearly = Report((Work("a", 995, "int8", ""), Work("b", 5, "float", "why")), True)
    assert nearly.sentence() == "99 % of the multiply-accumulates are in int8; the rest: b (0 %, float: why)"


def test_a_path_in_a_report_has_39_characters_of_a_line():
    for path, shown in (("a" * 37 + ".b", "a" * 37 + ".b"), ("a" * 38 + ".b", "a" * 38 + ".")):
        assert str(Report((Work(path, 5, "int8", ""),), True)).splitlines()[4].split()[0] == shown


@pytest.mark.parametrize(("part", "whole", "text"), [(1, 3, "33 %"), (2, 3, "67 %"), (5, 5, "100 %"), (0, 0, "0 %")])
def test_shares_are_whole_percents(part, whole, text):
    assert percent(part, whole) == text


def test_rows_of_one_module_place_and_reason_become_one():
    rows = [
        Work("a", 1, "int8", ""), Work("b", 0, "int8", ""), Work("a", 2, "int8", ""), Work("a", 4, "float", "why"),
        Work("a", 8, "float", "other"), Work("a", 16, "int8", ""),
    ]  # fmt: skip
    assert report(rows, counted=False) == Report(
        (Work("a", 19, "int8", ""), Work("a", 4, "float", "why"), Work("a", 8, "float", "other")), False
    )
    assert report([], counted=True) == Report((), True)


def test_a_table_is_text_whatever_the_program_writes_to(monkeypatch):
    before = printed.printed(table())
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert printed.printed(table()) == before
    # A notebook shows what is printed there itself, and gives no text of it.
    monkeypatch.setattr("builtins.get_ipython", type("ZMQInteractiveShell", (), {}), raising=False)
    assert printed.printed(table()) == before


@pytest.mark.parametrize("name", ["a[b]", "[/b]", "[bold]", ":key:", "a\\[b]", "[link=x]y"])
def test_names_are_printed_letter_by_letter(name):
    made = printed.new_table("t", "layer")
    made.add_row(name)
    assert printed.printed(made).splitlines()[-1] == f" {name}"


def test_a_report_says_where_nothing_is_in_float_that_was_not_asked_for():
    for rows in ((), ROWS[:1], ROWS[3:4]):
        said = Report(rows, True).sentence()
        assert said == "all multiply-accumulates that are not excluded are in int8"
