"""What backends call themselves and say, in records, on pages and on the terminal: any text comes through as it is."""

import argparse
import io
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from quantspec import chapters, cli
from quantspec.backends import registry
from quantspec.conformance import command, fingerprint, report_markdown, results
from quantspec.conformance.fingerprint import Choice
from quantspec.conformance.results import Results
from told import exactly

FAILS = {
    "clause": "BAK-PLACE", "operation": "add", "outcome": "fails", "shape": "other codes", "call": "add()",
    "allowed": "1", "got": "2",
}  # fmt: skip


def made(backend="mine", version="1", cpu="cpu", **changed) -> Results:
    return Results(backend, version, cpu, ({**FAILS, **changed},), ())


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9), lines=st.booleans())
def test_whatever_a_backend_says_is_read_as_it_was_written(text, lines, tmp_path_factory):
    """Messages with the colours of a terminal, and names outside of Unicode's first plane: TOML has other escapes than
    JSON."""
    root = tmp_path_factory.mktemp("results")
    said = f"{text}\n{text}" if lines else text
    one = made(got=said)
    results.write(root, one)
    assert results.read_all(root) == [one]
    named = Results(f"a{text}", text, "cpu", one.findings, ())
    for key, value in (("backend", named.backend), ("version", named.version)):
        assert results.tomllib.loads(f"{key} = {results.toml(value)}") == {key: value}


@pytest.mark.parametrize(
    "said", ["a\n\x1b[31mred", "a\r\nb", "a\nb\x7f", "\x7f", "a\n'''b", "\na\n", "a\nb''", "a\\\n", "\U0001f600"]
)
def test_what_no_toml_has_between_its_quotes_is_written_with_escapes(said, tmp_path):
    results.write(tmp_path, made(version="\U0001f600", got=said))
    assert results.read_all(tmp_path) == [made(version="\U0001f600", got=said)]


def test_half_of_a_pair_of_code_units_which_no_file_can_hold_becomes_a_question_mark(tmp_path):
    results.write(tmp_path, made(got="a\udc80b"))
    assert results.read_all(tmp_path) == [made(got="a?b")]


@pytest.mark.parametrize("name", ["my/backend", "my[backend]", "my*", "back?end", "\U0001f600"])
def test_results_of_a_backend_with_any_name_replace_those_of_its_other_versions_on_this_cpu(name, tmp_path):
    """A name was taken for a pattern of folders' names: a second run ended in an error of Python's."""
    for one in (made("mine"), made(name, cpu="other"), made(name, "0"), made(name), made(name)):
        results.write(tmp_path, one)
    left = [(one.backend, one.version, one.cpu) for one in results.read_all(tmp_path)]
    assert sorted(left) == sorted([("mine", "1", "cpu"), (name, "1", "cpu"), (name, "1", "other")])


def test_a_folder_of_another_backend_is_not_written_over(tmp_path):
    results.write(tmp_path, made("my/backend"))
    message = f"{tmp_path / 'my-backend-1-cpu'}: it holds the results of 'my/backend', not of 'my-backend'"
    with pytest.raises(ValueError, match=exactly(message)):
        results.write(tmp_path, made("my-backend"))
    assert results.read_all(tmp_path) == [made("my/backend")]


def test_a_folder_without_results_is_none_of_a_backends(tmp_path):
    (tmp_path / "mine-0-cpu").mkdir()
    (tmp_path / "mine-1-cpu").mkdir()
    (tmp_path / "mine-1-cpu" / "README.md").write_text("a page")
    results.write(tmp_path, made())
    assert results.read_all(tmp_path) == [made()] and (tmp_path / "mine-0-cpu").exists()


def shown(thing) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(thing)
    return out.getvalue()


@pytest.mark.parametrize("said", ["[/usr/lib/x.so] failed", "[red]rows[/red]", "expected [rows, columns]"])
def test_what_a_backend_says_is_shown_with_its_brackets(said):
    """They were taken for marks of the terminal's: left out, or an error."""
    for text in (
        shown(command.table(made(said, got=said))), shown(command.table(made(version=said))),
        shown(command.choices_table(said, [Choice("add", "DIA-ADD", "add", "other", 3, said)])),
        shown(command.choices_table("mine", [Choice("add", "DIA-ADD", "add", said)])),
    ):  # fmt: skip
        assert said in text


def test_a_summary_is_shown_with_the_brackets_of_a_name(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(chapters, "directory", lambda: tmp_path)
    monkeypatch.setattr(registry, "why_not_installed", lambda name: "")
    monkeypatch.setattr(command, "examined", lambda names, options: [made("my[/x]")])
    assert cli.main(["conformance", "--backend", "mine"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("my[/x] 1 on cpu: 0 pass, 1 differ, 0 not offered\n")
    assert "my[/x] BAK-PLACE add: differs, other codes; no reason is recorded.\n" in said


def test_a_folder_that_is_not_there_has_no_recorded_results(tmp_path, capsys):
    assert cli.main(["conformance", "--recorded", "--write", str(tmp_path / "nowhere")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    root = tmp_path / "nowhere" / "results"
    assert said.endswith(
        f"--recorded: expected a folder with recorded results, {root} has none; a checkout of the repository has them "
        "in spec/results"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoVersion", "AttributeError: 'NoVersion' object has no attribute 'version'"),
        ("Nobody", "AttributeError: module 'conformance.ending_backends' has no attribute 'Nobody'"),
    ],
)
def test_a_backend_that_cannot_be_made_is_told_by_both_commands(name, message, capsys):
    """It ended them with an error of Python's."""
    entry = f"conformance.ending_backends:{name}"
    absent = command.examine(entry, 1, 20.0)
    assert absent == command.Absent(f"{entry}: {message}", True)
    assert cli.main(["fingerprint", entry]) == 2
    assert f"backend {entry}: {message}" in " ".join(capsys.readouterr().err.split())


def test_a_fingerprint_gives_a_call_the_seconds_that_were_asked_for(monkeypatch):
    given = []

    class Worker:
        name, version, operations = "mine", "1", ()

        def __init__(self, name, *, seconds):
            given.append((name, seconds))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(fingerprint, "Worker", Worker)
    monkeypatch.setattr(command, "Worker", Worker)
    monkeypatch.setattr(command, "smoke", lambda name, worker: None)
    monkeypatch.setattr(command.run, "run", lambda name, *, examples, seconds: given.append((name, seconds)) or [])
    found = command.examine("mine", 1, 77.0)
    assert given == [("mine", 77.0)] * 3 and isinstance(found, Results)
    assert [choice["choice"] for choice in found.choices] == ["not offered"] * len(fingerprint.PLACES)
    assert {choice["counterexample"] for choice in found.choices} == {
        f"no method {place.operation}" for place in fingerprint.PLACES
    }


def test_a_name_with_spaces_and_bars_is_linked_and_fills_one_cell():
    """A link ended at the first space, and a cell at the first bar."""
    page = report_markdown.markdown([made("My kernel|2", "1.0 (beta)")])
    target = "results/My%20kernel%7C2-1.0%20%28beta%29-cpu/README.md"
    assert rf"| clause | [My kernel\|2]({target}) |" in page.splitlines()
    assert f" [add]({target}#bak-place-add) |" in page


def test_backends_of_another_set_of_choices_stand_beside_each_other():
    """As where one was recorded before there was a place."""
    choice = {"clause": "DIA-ADD", "operation": "add", "place": "add", "choice": "real or two", "outputs": 9}
    rows = list(report_markdown.chosen([Results("a", "1", "cpu", (), (choice,)), Results("b", "1", "cpu", (), ())]))
    assert rows == [["add<br>DIA-ADD", "real<br>or two", "–"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 0}, "--examples: expected at least 1, got 0"),
        ({"seconds": 0.0}, "--seconds: expected more than 0, got 0"),
        ({"seconds": float("nan")}, "--seconds: expected more than 0, got nan"),
    ],
)
def test_numbers_that_are_none_are_told(options, message):
    given = argparse.Namespace(**{"examples": 1, "seconds": 1.0} | options)
    with pytest.raises(ValueError, match=exactly(message)):
        command.conformance(given)


@pytest.mark.parametrize(("machine", "kind"), [("aarch64", "aarch64"), ("x86_64", "avx2-vnni-amx"), ("AMD64", "avx2")])
def test_a_kind_of_cpu_is_named_by_what_kernels_are_chosen_by(machine, kind, monkeypatch):
    has = kind.endswith("amx")
    monkeypatch.setattr(results.platform, "machine", lambda: machine)
    stand_in = SimpleNamespace(
        cpu=SimpleNamespace(_is_vnni_supported=lambda: has, _is_amx_tile_supported=lambda: has),
        backends=SimpleNamespace(cpu=SimpleNamespace(get_cpu_capability=lambda: "AVX2")),
    )
    monkeypatch.setattr(results, "torch", stand_in)
    assert results.cpu() == kind
