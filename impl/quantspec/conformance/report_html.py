"""The matrix as one HTML page: backends across, clauses down, and cells that open what was found."""

import html
from typing import Any

from quantspec import chapters
from quantspec.chapters import Clause

from .report_markdown import account, explained, families, places
from .results import Known, Results

STYLE = """
:root { --ink: #1d2433; --soft: #5b6579; --line: #d9dee7; --good: #e7f5ec; --bad: #fdeceb; --choice: #eef2fb; --head: \
#f6f8fb; }
* { box-sizing: border-box; }
body { margin: 0; padding: 1.5rem; color: var(--ink); background: #fff; font: 15px/1.5 system-ui, "DejaVu Sans", \
sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; } p { max-width: 52rem; margin: .4rem 0; } .soft { \
color: var(--soft); }
.matrix { overflow: auto; max-height: 88vh; border: 1px solid var(--line); margin-top: 1rem; }
table { border-collapse: separate; border-spacing: 0; font-size: .8rem; }
th, td { border-right: 1px solid var(--line); border-bottom: 1px solid var(--line); padding: .2rem .4rem; text-align: \
center; background: #fff; }
td { min-width: 3.6rem; max-width: 8rem; line-height: 1.25; }
thead th { position: sticky; top: 0; z-index: 2; vertical-align: bottom; font-weight: 600; }
thead span { display: inline-block; writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; \
line-height: 1.25; max-height: 15rem; }
thead th:first-child { left: 0; z-index: 3; text-align: left; }
tbody th { position: sticky; left: 0; z-index: 1; text-align: left; font-weight: 400; min-width: 11rem; max-width: \
17rem; }
tr.clause th { font-weight: 700; background: var(--head); } tr.clause td { background: var(--head); } tr.clause th b \
{ white-space: nowrap; }
.first { border-left: 2px solid #8d99ae; }
td.pass { background: var(--good); color: #17633a; } td.fails { background: var(--bad); } td.choice { background: \
var(--choice); } td.none { color: #6b7587; }
button { all: unset; cursor: pointer; color: #9b1c13; text-decoration: underline dotted; } td.choice button { color: \
#27408b; }
button:focus-visible, .matrix:focus-visible { outline: 2px solid #27408b; }
[popover] { width: min(46rem, 94vw); max-height: 88vh; overflow: auto; border: 1px solid var(--line); border-radius: \
6px; padding: 1rem 1.2rem; text-align: left;
            box-shadow: 0 8px 30px #0003; }
[popover]::backdrop { background: #1d243355; } [popover] h2 { font-size: 1rem; margin: 0 2rem .5rem 0; overflow-wrap: \
anywhere; }
[popover] > button { position: absolute; top: .7rem; right: 1rem; color: var(--ink); text-decoration: none; \
font-size: 1.1rem; padding: 0 .3rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--head); padding: .6rem; border-radius: 4px; \
margin: .2rem 0 .6rem;
      font: .8rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
@media (max-width: 600px) { body { padding: .8rem; } tbody th { min-width: 7rem; max-width: 8.5rem; } thead span { \
max-height: 13rem; } }
"""
INTRODUCTION = """<h1>What backends do with 8-bit networks</h1>
<p>Clauses of the specification down, backends across. <b>pass</b>: no drawn call broke the clause. <b>differs</b>: \
one did; open it to see the smallest that was found.
A blue name is the alternative that the backend takes where the specification leaves a choice (chapter 10), found by \
probing it. – : not offered.</p>
<p><b>A dialect is a choice, not a fault.</b> There is no score: what matters is whether a backend does what you rely \
on.</p>"""


def page(all_results: list[Results], divergences: list[Known]) -> str:
    """The page, which needs nothing beside it."""
    sentences = chapters.clauses()
    groups = families(all_results)
    columns = [(results, results is members[0]) for members in groups.values() for results in members]
    heads = "".join(
        f"<th{edge(first)}><span>{escaped(results.backend)}<br>"
        f'<small class="soft">{escaped(results.version)} · {escaped(results.cpu)}</small></span></th>'
        for results, first in columns
    )
    body: list[str] = []
    opened: list[str] = []
    for clause, operations in places(all_results).items():
        title = f" · {escaped(sentences[clause].title)}" if clause in sentences else ""
        empty = "".join(f"<td{edge(first)}></td>" for _, first in columns)
        body.append(f'<tr class="clause"><th><b>{clause}</b>{title}</th>{empty}</tr>')
        for operation, place in rows(all_results, clause, operations):
            cells = []
            for results, first in columns:
                kind, tables = cell(results, clause, operation, place)
                found = tables[0]
                border = " first" if first else ""
                if kind in ("fails", "choice"):
                    name = f"d{len(opened)}"
                    word = "differs" if kind == "fails" else escaped(found["choice"])
                    cells.append(f'<td class="{kind}{border}"><button popovertarget="{name}">{word}</button></td>')
                    close = f'<button popovertarget="{name}" aria-label="close">✕</button>'
                    shown = popover(results, tables, divergences, sentences)
                    opened.append(f'<div popover id="{name}">{close}{shown}</div>')
                else:
                    reason = f' title="{escaped(found["reason"])}"' if found.get("reason") else ""
                    style, word = ("pass", "pass") if kind == "pass" else ("none", "–")
                    cells.append(f'<td class="{style}{border}"{reason}>{word}</td>')
            name = (place or operation).replace("_", "_<wbr>")
            body.append(f"<tr><th>{name}</th>{''.join(cells)}</tr>")
    table = f"<table><thead><tr><th>clause</th>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>quantspec: what backends do</title><style>{STYLE}</style></head>'
        f'<body>{INTRODUCTION}<div class="matrix" tabindex="0">{table}</div>'
        f"{''.join(opened)}</body></html>\n"
    )


def edge(first: bool) -> str:
    """The attribute of a cell where a family begins."""
    return ' class="first"' if first else ""


def escaped(text: str) -> str:
    """Text as HTML says it."""
    return html.escape(text)


def rows(all_results: list[Results], clause: str, operations: list[str]) -> list[tuple[str, str]]:
    """(operation, place) of a clause's rows; the place is empty but for choices."""
    tables = (table for results in all_results for table in results.choices if table["clause"] == clause)
    chosen = dict.fromkeys((table["operation"], table["place"]) for table in tables)
    return list(chosen) or [(operation, "") for operation in operations]


def cell(results: Results, clause: str, operation: str, place: str) -> tuple[str, list[dict[str, Any]]]:
    """What stands in a cell (pass, fails, choice, not offered) and the tables behind it, of which failures may have
    several."""
    if place:
        found = next(({**t} for t in results.choices if t["place"] == place), {"choice": "not offered"})
        return ("not offered" if found["choice"] == "not offered" else "choice"), [found]
    findings = [t for t in results.findings if (t["clause"], t["operation"]) == (clause, operation)]
    findings = findings or [{"outcome": "not offered"}]
    return findings[0]["outcome"], findings


def popover(
    results: Results, tables: list[dict[str, Any]], divergences: list[Known], sentences: dict[str, Clause]
) -> str:
    """What a cell opens."""
    found = tables[0]
    clause = found["clause"]
    sentence = f'<p class="soft">{escaped(sentences[clause].sentence)}</p>' if clause in sentences else ""
    title = f"{escaped(results.backend)} {escaped(results.version)}: {found.get('place', found['operation'])}, {clause}"
    head = f"<h2>{title}</h2>{sentence}"
    if "choice" in found:
        rest = f"<p>Its choice: <b>{escaped(found['choice'])}</b>, by {found['outputs']:,} outputs.</p>"
        return head + rest + (f"<pre>{escaped(found['counterexample'])}</pre>" if found.get("counterexample") else "")
    return head + "".join(difference(results, table, divergences) for table in tables)


def difference(results: Results, found: dict[str, Any], divergences: list[Known]) -> str:
    """One difference of a cell: its shape, its reason, and the call that shows it."""
    head = f"<h3>{escaped(found['shape'])}</h3>"
    reason = explained(results, found, divergences)
    count = f"Beside {found.get('outputs', 0):,} outputs that agree."
    if found.get("differ"):
        count = f"{found['differ']:,} of {found['outputs']:,} outputs differ."
    why = f"<p><b>Why:</b> {escaped(reason)}</p>" if reason else ""
    counted = f"<p>{count}</p>" if found.get("outputs") else ""
    parts = account(found)
    if found.get("reproduce"):
        parts.append(("to see it without quantspec", found["reproduce"].strip()))
    return head + why + counted + "".join(f"<b>{name}</b><pre>{escaped(text)}</pre>" for name, text in parts)
