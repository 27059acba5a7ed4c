"""The recorded results, what explains them, and the pages that are made of them."""

import html
import re

import pytest

from quantspec import chapters, cli
from quantspec.backends import registry
from quantspec.conformance import command, report_html, report_markdown, results
from quantspec.conformance.results import Known, Results

SPEC = chapters.directory()
RECORDED = results.read_all(SPEC / "results")
KNOWN = results.read_known(SPEC / "results")
FAILS = {
    "clause": "BAK-PLACE", "operation": "add", "outcome": "fails", "shape": "other codes",
    "call": "add(<1>)", "before": ["add(<0>)"], "allowed": "1", "got": "2 & more", "reproduce": "print(1)",
}  # fmt: skip
PASSES = {"clause": "BAK-EMPTY", "operation": "add", "outcome": "pass", "examples": 3, "outputs": 3}
CHOICE = {"clause": "DIA-ADD", "operation": "add", "place": "add", "choice": "real or real-inside", "outputs": 9}


def made(backend: str = "mine", findings=(FAILS, PASSES), choices=(CHOICE,)) -> Results:
    return Results(backend, "1", "cpu", tuple(findings), tuple(choices))


@pytest.mark.parametrize("path", sorted(report_markdown.pages(RECORDED, KNOWN)))
def test_a_page_is_what_the_results_say(path):
    """`make matrix` writes them anew."""
    assert (SPEC / path).read_text(encoding="utf-8") == report_markdown.pages(RECORDED, KNOWN)[path]


def test_every_recorded_divergence_is_explained_and_every_explanation_is_needed():
    assert results.complaints(RECORDED, KNOWN) == []
    assert all(entry.reason for entry in KNOWN)


def test_every_known_peer_is_recorded_under_its_own_name_and_once_on_each_kind_of_cpu():
    peers = sorted([*command.OWN, *command.PEERS])
    assert sorted(one.backend for one in RECORDED if one.cpu == "avx512-vnni") == peers
    others = [(one.backend, one.cpu) for one in RECORDED]
    assert len(set(others)) == len(others) and {name for name, _ in others} <= set(peers)


@pytest.mark.parametrize("one", RECORDED, ids=lambda one: f"{one.backend}-{one.cpu}")
def test_an_operation_agrees_with_its_dialects_on_ten_thousand_outputs_or_shows_where_it_does_not(one):
    for finding in one.findings:
        if finding["clause"] == "BAK-DIALECT" and finding["outcome"] != "not offered":
            assert finding["outputs"] >= 10_000 or finding["outcome"] == "fails", finding["operation"]
        if finding["outcome"] == "fails":
            assert finding["call"] and finding["allowed"] and finding["got"]


def test_the_page_has_a_column_for_each_backend_and_gives_no_score():
    text = report_html.page(RECORDED, KNOWN)
    assert text.count("<small") == len(RECORDED) >= 12
    assert "A dialect is a choice, not a fault." in text
    assert not re.search(r"\d\s*%", re.sub(r"<style>.*</style>|<pre>.*?</pre>", "", text, flags=re.DOTALL))
    for target in re.findall(r'popovertarget="(\w+)"', text):
        assert f'id="{target}"' in text


def test_a_cell_opens_what_was_found_and_why():
    known = [Known("mine", "BAK-*", "add", ["other codes"], "the tail is scalar code", "https://example.org/1")]
    text = report_html.page([made()], known)
    calls = "add(&lt;1&gt;)", "add(&lt;0&gt;)", "2 &amp; more"
    for said in (*calls, "the tail is scalar code (https://example.org/1)", "real or real-inside"):
        assert said in text
    assert chapters.clauses()["BAK-PLACE"].sentence in text


HTML = """
<div class="matrix" tabindex="0"><table><thead><tr><th>clause</th><th class="first"><span>torch-x86<br>
<small class="soft">2+&lt;cpu&gt; · cpu</small></span></th><th class="first"><span>quantspec-exact<br>
<small class="soft">1 · cpu</small></span></th></tr></thead><tbody>
<tr class="clause"><th><b>BAK-PLACE</b> · {title[BAK-PLACE]}</th><td class="first"></td><td class="first"></td></tr>
<tr><th>add</th><td class="none first">–</td>
<td class="fails first"><button popovertarget="d0">differs</button></td></tr>
<tr class="clause"><th><b>BAK-EMPTY</b> · {title[BAK-EMPTY]}</th><td class="first"></td><td class="first"></td></tr>
<tr><th>add</th><td class="none first" title="no &quot;add&quot;">–</td><td class="pass first">pass</td></tr>
<tr class="clause"><th><b>DIA-ADD</b> · {title[DIA-ADD]}</th><td class="first"></td><td class="first"></td></tr>
<tr><th>add</th><td class="choice first"><button popovertarget="d1">real or real-inside</button></td>
<td class="choice first"><button popovertarget="d2">one &amp; two</button></td></tr>
<tr><th>mul_<wbr>q</th><td class="choice first"><button popovertarget="d3">real or real-inside</button></td>
<td class="none first">–</td></tr></tbody></table></div>
<div popover id="d0"><button popovertarget="d0" aria-label="close">✕</button>
<h2>quantspec-exact 1: add, BAK-PLACE</h2><p class="soft">{said[BAK-PLACE]}</p>
<h3>other codes</h3><p><b>Why:</b> so &lt;it&gt; is (https://example.org/1)</p><p>30 of 1,200 outputs differ.</p>
<b>before</b><pre>add(&lt;0&gt;)</pre><b>asked</b><pre>add(&lt;1&gt;)</pre><b>allowed</b><pre>1</pre>
<b>got</b><pre>2 &amp; more</pre><b>to see it without quantspec</b><pre>print(1)</pre>
<h3>an &lt;end&gt;</h3><p>Beside 4,000 outputs that agree.</p>
<b>asked</b><pre>add(&lt;1&gt;)</pre><b>allowed</b><pre>1</pre><b>got</b><pre>3</pre></div>
<div popover id="d1"><button popovertarget="d1" aria-label="close">✕</button>
<h2>torch-x86 2+&lt;cpu&gt;: add, DIA-ADD</h2><p class="soft">{said[DIA-ADD]}</p>
<p>Its choice: <b>real or real-inside</b>, by 9 outputs.</p></div>
<div popover id="d2"><button popovertarget="d2" aria-label="close">✕</button>
<h2>quantspec-exact 1: add, DIA-ADD</h2><p class="soft">{said[DIA-ADD]}</p>
<p>Its choice: <b>one &amp; two</b>, by 9 outputs.</p><pre>add(&lt;2&gt;)</pre></div>
<div popover id="d3"><button popovertarget="d3" aria-label="close">✕</button>
<h2>torch-x86 2+&lt;cpu&gt;: mul_q, DIA-ADD</h2><p class="soft">{said[DIA-ADD]}</p>
<p>Its choice: <b>real or real-inside</b>, by 9 outputs.</p></div></body></html>
"""


def test_the_whole_page_of_two_backends():
    fails = FAILS | {"outputs": 1200, "differ": 30}
    other = FAILS | {"shape": "an <end>", "reproduce": "", "before": [], "outputs": 4000, "got": "3"}
    absent = {"clause": "BAK-EMPTY", "operation": "add", "outcome": "not offered", "reason": 'no "add"'}
    chosen = CHOICE | {"choice": "one & two", "counterexample": "add(<2>)"}
    ours = Results("quantspec-exact", "1", "cpu", (fails, other, PASSES), (chosen,))
    theirs = Results("torch-x86", "2+<cpu>", "cpu", (absent,), (CHOICE, CHOICE | {"place": "mul_q"}))
    known = [Known("quantspec-*", "BAK-PLACE", "add", ["other codes"], "so <it> is", "https://example.org/1")]
    head, body = report_html.page([ours, theirs], known).split(f"<style>{report_html.STYLE}</style></head><body>")
    assert head == (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,"><title>quantspec: what backends do</title>'
    )
    clauses = chapters.clauses()
    titles = {id_: html.escape(clause.title) for id_, clause in clauses.items()}
    sentences = {id_: html.escape(clause.sentence) for id_, clause in clauses.items()}
    expected = HTML.replace("\n", "").format(title=titles, said=sentences)
    assert body == f"{report_html.INTRODUCTION}{expected}\n"


def test_a_cell_of_what_a_backend_does_not_offer_says_so():
    mine = made(choices=(CHOICE, CHOICE | {"place": "mul", "choice": "not offered"}))
    assert report_html.cell(mine, "", "", "add") == ("choice", [CHOICE])
    for place in ("mul", "concat"):
        kind, (found,) = report_html.cell(mine, "", "", place)
        assert kind == found["choice"] == "not offered"
    assert report_html.cell(mine, "BAK-PLACE", "add", "") == ("fails", [FAILS])
    assert report_html.cell(mine, "BAK-EMPTY", "add", "") == ("pass", [PASSES])
    assert report_html.cell(mine, "BAK-EMPTY", "mul", "") == ("not offered", [{"outcome": "not offered"}])


def test_markdown_leads_from_a_clause_to_the_call_that_broke_it():
    known = [Known("mine", "BAK-PLACE", "add", ["other codes"], "the tail is scalar code")]
    pages = report_markdown.pages([made()], known)
    assert "[add](results/mine-1-cpu/README.md#bak-place-add)" in pages["conformance.md"]
    own = pages["results/mine-1-cpu/README.md"]
    assert "### BAK-PLACE add\n" in own and "**Why:** the tail is scalar code" in own and "asked: add(<1>)" in own
    passing = report_markdown.pages([made(findings=(PASSES,))], [])
    assert "## What differs\n\nNothing." in passing["results/mine-1-cpu/README.md"]


def test_families_stand_together_in_the_registrys_order():
    names = ["openvino", "mine", "torch-onednn", "torch-x86"]
    families = report_markdown.families([made(name) for name in names])
    assert {family: [one.backend for one in members] for family, members in families.items()} == {
        "PyTorch's engines": ["torch-x86", "torch-onednn"],
        "ONNX, LiteRT, OpenVINO": ["openvino"],
        registry.OTHERS: ["mine"],
    }


def test_results_are_read_as_they_were_written(tmp_path):
    absent = {"clause": "BAK-NAN", "operation": "quantize", "outcome": "not offered", "reason": "no\n'quantize'"}
    one = made(findings=(FAILS, PASSES, absent))
    results.write(tmp_path, one)
    (again,) = results.read_all(tmp_path)
    assert (again.backend, again.version, again.cpu, again.choices) == (one.backend, one.version, one.cpu, one.choices)
    assert all(finding in again.findings for finding in one.findings) and len(again.findings) == len(one.findings)


def test_pages_come_from_recorded_results_without_asking_any_backend(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "Worker", None)
    results.write(tmp_path / "results", made())
    entry = '[[known]]\nbackend = "mine"\nclause = "*"\noperation = "add"\nshapes = ["other codes"]\nreason = "so"\n'
    (tmp_path / "results" / results.KNOWN).write_text(entry)
    written = ["--write", str(tmp_path), "--html", str(tmp_path / "out" / "page.html")]
    assert cli.main(["conformance", "--recorded", *written]) == 0
    assert capsys.readouterr().out == "conformance: 1 backend, 3 clauses, 1 divergence, 0 unexplained\n"
    assert (tmp_path / "conformance.md").exists() and (tmp_path / "out" / "page.html").exists()


def test_a_backend_that_is_missing_is_told_with_the_extra_that_brings_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "OWN", ())
    monkeypatch.setattr(command, "PEERS", ("onnxruntime",))
    missing = "not installed: there is no module onnx; pip install 'quantspec[onnx]'"
    monkeypatch.setattr(registry, "why_not_installed", lambda name: missing)
    (tmp_path / "results").mkdir()
    cli.main(["conformance", "--write", str(tmp_path)])
    assert capsys.readouterr().out.startswith(f"onnxruntime: {missing}\n")


@pytest.mark.parametrize("calls, shown", [((FAILS,), 1), ((PASSES,), 2), ((FAILS, PASSES), 1)])
def test_known_divergences_that_a_few_calls_do_not_show_are_counted_and_are_no_failure(
    calls, shown, monkeypatch, capsys, tmp_path
):
    """As on another CPU, or with few examples: whoever tests a backend keeps no record from which to delete one."""
    of = 'backend = "mine"\noperation = "add"\nshapes = ["other codes"]\nreason = "so"\n'
    entries = "".join(f'[[known]]\nclause = "{clause}"\n{of}' for clause in ("BAK-PLACE", "BAK-PURE"))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / results.KNOWN).write_text(entries)
    monkeypatch.setattr(chapters, "directory", lambda: tmp_path)
    monkeypatch.setattr(registry, "why_not_installed", lambda name: "")
    monkeypatch.setattr(command, "examined", lambda names, options: [made(findings=calls)])
    assert cli.main(["conformance", "--backend", "mine", "--examples", "1"]) == 0
    out = capsys.readouterr().out
    noun = "divergence" if shown == 1 else "divergences"
    assert f"{shown} known {noun} did not show in these calls on this machine\n" in out and "Delete" not in out
    assert out.endswith("0 unexplained\n")


def test_a_divergence_without_a_reason_fails_and_so_does_a_reason_without_a_divergence(tmp_path, capsys):
    results.write(tmp_path / "results", made())
    of = 'backend = "mine"\nclause = "BAK-NAN"\noperation = "*"\nshapes = ["other codes"]\n'
    entry = f'[[known]]\n{of}reason = "so"\n'
    (tmp_path / "results" / results.KNOWN).write_text(entry)
    assert cli.main(["conformance", "--recorded", "--write", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "mine BAK-PLACE add: differs, other codes; no reason is recorded." in said
    assert "BAK-NAN * is said to fail, and nothing does" in said
