"""The specification as a text: no definition is idle, no word comes before its explanation, and no id is ever lost."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

import account
from quantspec import chapters

ROOT = Path(__file__).parents[2]
TESTS = "\n".join(path.read_text() for path in sorted((ROOT / "tests" / "chapters").glob("test_*.py")))


def definitions(stem: str) -> list[tuple[str, str]]:
    """(name, source) of everything that a chapter's definition blocks define at their top."""
    names_and_sources = []
    for block in chapters.chapter(stem).blocks:
        if block.language == "python":
            for node in ast.parse(block.source).body:
                names = [node.name] if isinstance(node, ast.FunctionDef) else [
                    n.id for target in getattr(node, "targets", []) for n in ast.walk(target) if isinstance(n, ast.Name)
                ]
                names_and_sources += [(name, ast.get_source_segment(block.source, node)) for name in names]
    return names_and_sources


@pytest.mark.parametrize("stem", chapters.stems())
def test_every_definition_is_used(stem):
    blocks = [block.source for other in chapters.stems() for block in chapters.chapter(other).blocks]
    for name, source in definitions(stem):
        word = re.compile(rf"\b{name}\b")
        elsewhere = sum(len(word.findall(block)) for block in blocks) - len(word.findall(source))
        used = elsewhere or re.search(rf"\.{name}\b", TESTS)
        assert used, f"{stem}: nobody uses {name}; delete it, or show it at work"


@pytest.mark.parametrize("stem", chapters.stems())
def test_a_clause_is_one_sentence_that_binds(stem):
    for clause in chapters.chapter(stem).clauses:
        sentence = clause.sentence
        assert re.findall(r"\b(MUST|SHALL|SHOULD|MAY|REQUIRED)\b", sentence) == ["MUST"], f"{clause.id}: not one MUST"
        one_sentence = sentence.endswith(".") and not re.search(r"\.\s+[A-Z]", sentence)
        assert one_sentence, f"{clause.id} is more than one sentence"
        assert len(sentence.split()) < 110, f"{clause.id} is too long to be read at once"


def prose(stem: str) -> str:
    """A chapter without its title, its contents, its blocks, its formulas, and the code in its sentences."""
    text = chapters.chapter(stem).path.read_text().split("\n", 1)[1]
    text = re.sub(r"^(Contents|Implemented in).*?\n\n", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"```.*?```|^\$\$$.*?^\$\$$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`]*`", "", text)


# Words that have a plain meaning too, in which chapters may use them before they are given their special one.
PLAIN = {"zero_point", "choice", "static", "dynamic", "quantization", "observer", "layer", "dialect"}


def explained(stem: str) -> list[tuple[re.Match, str]]:
    """The words that a chapter explains, which are those it sets in bold or italics, and where."""
    emphasized = re.finditer(r"\*\*(.+?)\*\*|(?<!\*)\*([^*\n]+?)\*(?!\*)", prose(stem))
    return [(match, match[1] or match[2]) for match in emphasized]


@pytest.mark.parametrize("stem", chapters.stems())
def test_no_word_is_used_before_it_is_explained(stem):
    stems = chapters.stems()
    earlier = {term for s in stems[: stems.index(stem)] for _, term in explained(s)}
    body = prose(stem)
    for match, term in explained(stem):
        if term in earlier:
            continue
        if term.lower() not in PLAIN and len(term.split()) <= 3 and term[0].islower():
            used = re.search(rf"\b{re.escape(term)}s?\b", body[: match.start()])
            assert not used, f"{chapters.chapter(stem).path.name} uses {term!r} before it explains it"


def test_symbols_of_the_first_chapter_are_explained_where_they_come_up():
    text = prose("affine")
    for symbol in ("qmin", "qmax", "zero_point", "scale", "LSB", "qparams", "tie", "rounded"):
        first = re.search(rf"\b{symbol}\b", text)
        assert first and text[first.start() - 1] == "*" == text[first.end()], f"{symbol} is used before it is explained"


def test_the_index_lists_every_chapter_with_its_clauses():
    index = (ROOT / "spec" / "README.md").read_text()
    for stem in chapters.stems():
        chapter = chapters.chapter(stem)
        prefix = chapter.clauses[0].id[:3]
        assert re.search(rf"\| \[[^\]]+\]\({chapter.path.name}\) \|.*\| {prefix} \|", index), chapter.path.name


def git(*arguments: str) -> str:
    """What git prints in this checkout, empty where it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return "" if done.returncode else done.stdout


def test_no_id_was_ever_lost():
    """Every id that a committed lock ever had is in the lock today."""
    commits = git("log", "--format=%H", "--", "spec/clauses.lock").split()
    if not commits:
        pytest.skip("no history of this checkout at hand, in which ids could have been lost")
    today = set(account.read_lock(ROOT / "spec" / "clauses.lock").clauses)
    for commit in commits:
        old = git("show", f"{commit}:spec/clauses.lock")
        lost = set(re.findall(r"^\[([A-Z]{3}-[A-Z0-9-]+)\]", old, re.MULTILINE)) - today
        where = f"{', '.join(sorted(lost))}: in the lock of {commit[:12]} and no longer in today's"
        assert not lost, f"{where}. Ids are permanent: withdraw them instead."
