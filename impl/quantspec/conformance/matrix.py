"""The matrix: backends across, clauses down, as ``spec/conformance.md`` and as one HTML page whose cells open what was found."""

import html
from collections.abc import Iterable

from .. import chapters
from .results import Known, Results

WORDS = {"pass": "pass", "fails": "differs", "not offered": "–"}
STYLE = """
:root { --ink: #1d2433; --soft: #5b6579; --line: #d9dee7; --good: #e7f5ec; --bad: #fdeceb; --choice: #eef2fb; }
* { box-sizing: border-box; }
body { margin: 0; padding: 1.5rem; color: var(--ink); background: #fff; font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } p { max-width: 52rem; margin: .4rem 0; } .soft { color: var(--soft); }
.matrix { overflow: auto; max-height: 85vh; border: 1px solid var(--line); margin-top: 1rem; }
table { border-collapse: separate; border-spacing: 0; font-size: .8rem; }
th, td { border-right: 1px solid var(--line); border-bottom: 1px solid var(--line); padding: .2rem .45rem; text-align: center; white-space: nowrap; background: #fff; }
thead th { position: sticky; top: 0; z-index: 2; vertical-align: bottom; } thead th span { writing-mode: vertical-rl; transform: rotate(180deg); }
tbody th { position: sticky; left: 0; z-index: 1; text-align: left; font-weight: 400; }
tr.clause th { font-weight: 700; background: #f6f8fb; } tr.clause td { background: #f6f8fb; }
td.pass { background: var(--good); color: #17633a; } td.fails { background: var(--bad); } td.choice { background: var(--choice); }
td.none { color: #b7bfcc; } button { all: unset; cursor: pointer; color: #9b1c13; text-decoration: underline dotted; } td.choice button { color: #27408b; }
button:focus-visible { outline: 2px solid #27408b; }
[popover] { max-width: min(46rem, 94vw); max-height: 85vh; overflow: auto; border: 1px solid var(--line); border-radius: 6px; padding: 1rem 1.2rem;
            box-shadow: 0 8px 30px #0003; text-align: left; }
[popover]::backdrop { background: #1d243355; } [popover] h2 { font-size: 1rem; margin: 0 0 .5rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f8fb; padding: .6rem; border-radius: 4px; margin: .2rem 0 .6rem;
      font: .8rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
"""


def places(all_results: Iterable[Results]) -> dict[str, list[str]]:
    """The operations that were held against each clause, in the order of the files."""
    found: dict[str, list[str]] = {}
    for results in all_results:
        for table in (*results.findings, *results.choices):
            operations = found.setdefault(table["clause"], [])
            if table["operation"] not in operations:
                operations.append(table["operation"])
    return found


def cell(results: Results, clause: str, operation: str) -> tuple[str, dict]:
    """What stands in a cell (pass, fails, choice, not offered) and the table behind it."""
    for table in results.findings:
        if (table["clause"], table["operation"]) == (clause, operation):
            return table["outcome"], table
    made = [table for table in results.choices if (table["clause"], table["operation"]) == (clause, operation)]
    if not made or all(table["choice"] == "not offered" for table in made):
        return "not offered", made[0] if made else {}
    joined = "; ".join(table["choice"] for table in made if table["choice"] != "not offered")
    return "choice", {**made[0], "choice": joined}


def divergences(all_results: Iterable[Results]) -> int:
    """How many failures there are in all."""
    return sum(table["outcome"] == "fails" for results in all_results for table in results.findings)


def markdown(all_results: list[Results], known: list[Known]) -> str:
    """``spec/conformance.md``."""
    sentences = chapters.clauses()
    lines = [
        "# What backends do",
        "",
        "Written by `make conformance` from [`results/`](results). *pass*: no drawn call broke the clause. *differs*: one did, and it stands below.",
        "A name in *italics* is a choice of [chapter 10](10-dialects.md), which the backend was found to make: a choice is no fault. – means that the",
        "backend does not offer the operation, or no call that the clause speaks of. There is no score: what matters is whether the backend does",
        "what *you* rely on.",
        "",
        "| clause | operation | " + " | ".join(f"{r.backend}<br>{r.version}<br>{r.cpu}" for r in all_results) + " |",
        "|---|---|" + "---|" * len(all_results),
    ]
    for clause, operations in places(all_results).items():
        for operation in operations:
            cells = []
            for results in all_results:
                kind, table = cell(results, clause, operation)
                cells.append(f"*{table['choice']}*" if kind == "choice" else f"[differs](#{anchor(results, table)})" if kind == "fails" else WORDS[kind])
            lines.append(f"| {clause} | {operation} | " + " | ".join(cells) + " |")
    lines += ["", "## What differs"]
    for results in all_results:
        for table in results.findings:
            if table["outcome"] == "fails":
                lines += ["", f'### <a id="{anchor(results, table)}"></a>{results.backend} {results.version}, {table["operation"]}: {table["clause"]}', ""]
                lines += [f"> {sentences[table['clause']].sentence}", ""] if table["clause"] in sentences else []
                lines += [f"- before: `{call}`" for call in table.get("before", ())]
                lines += [f"- asked: `{table.get('call', '')}`", f"- allowed: {table['allowed']}", f"- got: {table['got']}"]
                if reason := explained(results, table, known):
                    lines.append(f"- known: {reason}")
                if table.get("reproduce"):
                    lines += ["", "```text", table["reproduce"].rstrip(), "```"]
    return "\n".join(lines) + "\n"


def anchor(results: Results, table: dict) -> str:
    return f"{results.backend}-{table['operation']}-{table['clause']}".lower()


def explained(results: Results, table: dict, known: list[Known]) -> str:
    """Why a divergence is as it is, and where it was reported."""
    entry = next((k for k in known if k.covers(results.backend, table["clause"], table["operation"])), None)
    return "" if entry is None else f"{entry.reason}{f' ({entry.upstream})' if entry.upstream else ''}"


def page(all_results: list[Results], known: list[Known]) -> str:
    """The matrix as one self-contained HTML page."""
    sentences = chapters.clauses()
    heads = "".join(
        f"<th><span>{html.escape(r.backend)}<br><small class=soft>{html.escape(r.version)} · {html.escape(r.cpu)}</small></span></th>" for r in all_results
    )
    body, dialogs = [], []
    for clause, operations in places(all_results).items():
        title = sentences[clause].title if clause in sentences else ""
        body.append(f'<tr class=clause><th>{clause} · {html.escape(title)}</th>{"<td></td>" * len(all_results)}</tr>')
        for operation in operations:
            cells = []
            for results in all_results:
                kind, table = cell(results, clause, operation)
                if kind in ("fails", "choice"):
                    word = "differs" if kind == "fails" else html.escape(table["choice"] if len(table["choice"]) < 22 else f"{table['choice'][:20]}…")
                    name = f"d{len(dialogs)}"
                    cells.append(f'<td class={kind}><button popovertarget={name}>{word}</button></td>')
                    dialogs.append(f"<div popover id={name}>{opened(results, clause, table, known, sentences)}</div>")
                else:
                    cells.append(f'<td class={"pass" if kind == "pass" else "none"} title="{html.escape(table.get("reason", ""))}">{WORDS[kind]}</td>')
            body.append(f"<tr><th>&emsp;{operation}</th>{''.join(cells)}</tr>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>quantspec: what backends do</title><style>{STYLE}</style></head><body>'
        "<h1>What backends do with 8-bit networks</h1>"
        "<p>Clauses of the specification down, backends across. <b>pass</b>: no drawn call broke the clause. "
        "<b>differs</b>: one did; open it to see the smallest that was found. "
        "A name is a <b>choice</b> that the specification leaves open (chapter 10), as it was found by probing: a choice is no fault. – : not offered.</p>"
        '<p class=soft>There is no score. What matters is whether a backend does what you rely on.</p>'
        f"<div class=matrix tabindex=0><table><thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{''.join(dialogs)}</body></html>\n"
    )


def opened(results: Results, clause: str, table: dict, known: list[Known], sentences: dict) -> str:
    """What a cell opens."""
    sentence = f"<p>{html.escape(sentences[clause].sentence)}</p>" if clause in sentences else ""
    title = f"<h2>{html.escape(results.backend)} {html.escape(results.version)} · {table['operation']} · {clause}</h2>{sentence}"
    if "choice" in table:
        rest = f"<p>Its choice: <b>{html.escape(table['choice'])}</b>, by {table['outputs']:,} outputs.</p>"
        return title + rest + (f"<pre>{html.escape(table['counterexample'])}</pre>" if table.get("counterexample") else "")
    parts = [("before", call) for call in table.get("before", ())]
    parts += [("asked", table.get("call", "")), ("allowed", table["allowed"]), ("got", table["got"])]
    parts += [("to see it without quantspec", table["reproduce"])] if table.get("reproduce") else []
    reason = explained(results, table, known)
    text = "".join(f"<b>{name}</b><pre>{html.escape(value)}</pre>" for name, value in parts)
    return title + text + (f"<p><b>Known:</b> {html.escape(reason)}</p>" if reason else "")
