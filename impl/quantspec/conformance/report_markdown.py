"""The matrix in Markdown: ``spec/conformance.md`` with backends across and clauses down, and a page for each backend
with what was found."""

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from quantspec import chapters
from quantspec.backends import registry
from quantspec.backends.protocol import OPERATIONS

from .results import Known, Results, covering

INTRODUCTION = """\
# What backends do

Which clauses of this specification real kernels keep, and which choices they make where it leaves one open. `make \
conformance` writes this page and the pages that it
links to, from what it records in [`results/`](results).

- **pass**: no call that was drawn broke the clause, for any operation that the backend offers.
- **An operation's name**: for this operation a call broke the clause. The link leads to the smallest such call that \
was found, what was allowed, what came
  out, how to see it without quantspec, and why it is so.
- **–**: the backend offers no operation that the clause speaks of.

A dialect is a choice, not a fault: the tables of choices say which alternative of [chapter 10](10-dialects.md) a \
backend was found to take when it was
probed from outside, and none is better than another. There is no score. What matters is whether the backend does \
what *you* rely on."""


def places(all_results: Iterable[Results]) -> dict[str, list[str]]:
    """The operations that were held against each clause: what binds every backend first, choices last."""
    found: dict[str, set[str]] = {}
    for results in all_results:
        for table in (*results.findings, *results.choices):
            found.setdefault(table["clause"], set()).add(table["operation"])
    return {clause: [o for o in (*OPERATIONS, "all") if o in found[clause]] for clause in ordered(found)}


def ordered(clauses: Iterable[str]) -> list[str]:
    """Clauses by chapter: that on backends first, that on dialects last."""
    chapter = list(chapters.clauses())

    def order(clause: str) -> tuple[bool, bool, int, str]:
        place = chapter.index(clause) if clause in chapter else len(chapter)
        return clause.startswith("DIA"), not clause.startswith("BAK"), place, clause

    return sorted(clauses, key=order)


def divergences(all_results: Iterable[Results]) -> int:
    """How many failures there are in all."""
    return sum(table["outcome"] == "fails" for results in all_results for table in results.findings)


def families(all_results: list[Results]) -> dict[str, list[Results]]:
    """Backends that stand beside each other, in the registry's order; those that it does not know come last."""
    order = list(registry.ENTRIES)
    registered = sorted((r for r in all_results if r.backend in order), key=lambda r: order.index(r.backend))
    found: dict[str, list[Results]] = {}
    for results in [*registered, *(r for r in all_results if r.backend not in order)]:
        family = registry.ENTRIES[results.backend].family if results.backend in order else registry.OTHERS
        found.setdefault(family, []).append(results)
    return found


def pages(all_results: list[Results], divergences: list[Known]) -> dict[str, str]:
    """All of it, by path inside ``spec/``."""
    matrix = {"conformance.md": markdown(all_results)}
    return matrix | {f"results/{results.folder}/README.md": own_page(results, divergences) for results in all_results}


def markdown(all_results: list[Results]) -> str:
    """``spec/conformance.md``."""
    lines = [INTRODUCTION]
    for family, members in families(all_results).items():
        heads = [f"[{r.backend}]({target(r)})" for r in members]
        lines += ["", f"## {family}", "", stands_for(members), ""]
        lines += table(["clause", *heads], held(members))
        lines += ["", "Choices:", ""]
        lines += table(["place", *heads], chosen(members))
    return "\n".join(lines) + "\n"


def target(results: Results) -> str:
    """What a link to a backend's own page leads to; a name may have spaces, which no link has."""
    return f"results/{quote(results.folder, safe='+')}/README.md"


def stands_for(members: list[Results]) -> str:
    """Versions and CPUs of a family, in a sentence."""
    backends: dict[tuple[str, str], list[str]] = {}
    for member in members:
        backends.setdefault((member.version, member.cpu), []).append(member.backend)
    versions = [f"{', '.join(names)}: {version} on {cpu}" for (version, cpu), names in backends.items()]
    hidden = ""
    if any("-no-vnni" in member.backend for member in members):
        hidden = " What ends in `-no-vnni` was told, by environment variables, to do without that instruction."
    return f"{'; '.join(versions)}.{hidden}"


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """The lines of a Markdown table; a bar inside a cell would end it."""
    lines = [[cell.replace("|", r"\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def held(members: list[Results]) -> Iterable[list[str]]:
    """A row for each clause: how the backends of a family keep it."""
    sentences = chapters.clauses()
    for clause in ordered({t["clause"] for r in members for t in r.findings}):
        cells = []
        for results in members:
            tables = [t for t in results.findings if t["clause"] == clause]
            broken = dict.fromkeys(
                f"[{t['operation']}]({target(results)}#{anchor(t)})" for t in tables if t["outcome"] == "fails"
            )
            cells.append("<br>".join(broken) or ("pass" if any(t["outcome"] == "pass" for t in tables) else "–"))
        if set(cells) != {"–"}:
            yield [f"{clause}<br>{sentences[clause].title}" if clause in sentences else clause, *cells]


def chosen(members: list[Results]) -> Iterable[list[str]]:
    """A row for each place of chapter 10: what the backends of a family choose there."""
    places = dict.fromkeys((t["place"], t["clause"]) for r in members for t in r.choices)
    order = ordered({clause for _, clause in places})
    for place, clause in sorted(places, key=lambda p: (order.index(p[1]), p[0])):
        cells = []
        for results in members:
            choice = next((t["choice"] for t in results.choices if t["place"] == place), "not offered")
            cells.append("–" if choice == "not offered" else choice.replace(" or ", "<br>or "))
        if set(cells) != {"–"}:
            yield [f"{place}<br>{clause}", *cells]


def own_page(results: Results, divergences: list[Known]) -> str:
    """What one backend does, in full."""
    sentences = chapters.clauses()
    lines = [f"# {results.backend} {results.version} on {results.cpu}", ""]
    lines += ["One column of [the matrix](../../conformance.md), written by `make conformance`."]
    compared = [t for t in results.findings if t["clause"] == "BAK-DIALECT" and t["outcome"] != "not offered"]
    compared = list({t["operation"]: t for t in reversed(compared)}.values())[::-1]  # the first of each counts
    lines += ["", "## Beside its dialects", ""]
    lines += ["Outputs that were compared with the declared dialects, and how many of them are of none.", ""]
    lines += table(["operation", "declared", "outputs", "differ"], ([*compared_row(t)] for t in compared))
    lines += ["", "## Its choices", "", "Found by probing, without being told the dialects.", ""]
    offered = [t for t in results.choices if t["choice"] != "not offered"]
    rows = ([t["place"], t["clause"], t["choice"], f"{t['outputs']:,}"] for t in offered)
    lines += table(["place", "clause", "choice", "outputs"], rows)
    for other in (t for t in offered if t.get("counterexample")):
        lines += ["", f"No alternative of {other['clause']} gives all its outputs at `{other['place']}`:", ""]
        lines += ["```text", other["counterexample"], "```"]
    lines += ["", "## What differs", ""]
    broken = [t for t in results.findings if t["outcome"] == "fails"]
    lines += [] if broken else ["Nothing."]
    heading = ""
    for found in broken:
        if heading != (heading := f"### {found['clause']} {found['operation']}"):
            lines += [heading, ""]
            lines += [f"> {sentences[found['clause']].sentence}", ""] if found["clause"] in sentences else []
        lines += [f"**Differs:** {found['shape']}.", ""]
        if reason := explained(results, found, divergences):
            lines += [f"**Why:** {reason}", ""]
        lines += ["```text", *(f"{name}: {text}" for name, text in account(found)), "```", ""]
        if found.get("reproduce"):  # no block of the tested kind: some of these end the process
            lines += ["```py", found["reproduce"].rstrip(), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def compared_row(found: dict[str, Any]) -> list[str]:
    """The row of an operation that was compared with its dialects."""
    # A call that was drawn apart may be the only one that differs.
    differ = f"[{found['differ'] or 'one'}](#{anchor(found)})" if found["outcome"] == "fails" else "0"
    return [found["operation"], " or ".join(found["dialects"]), f"{found['outputs']:,}", differ]


def account(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What was found, a line each."""
    before = [("before", call) for call in found.get("before", ())]
    return [*before, ("asked", found.get("call", "")), ("allowed", found["allowed"]), ("got", found["got"])]


def anchor(found: dict[str, Any]) -> str:
    """The fragment under which a forge shows a finding's heading."""
    return f"{found['clause']}-{found['operation']}".lower()


def explained(results: Results, found: dict[str, Any], divergences: list[Known]) -> str:
    """Why a divergence is as it is, and where it was reported."""
    entry = covering(divergences, results, found)
    return "" if entry is None else f"{entry.reason}{f' ({entry.upstream})' if entry.upstream else ''}"
