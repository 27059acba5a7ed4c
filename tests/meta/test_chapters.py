"""Reading chapters: what is parsed, and what is an error."""

import pytest

from quantspec import chapters

GOOD = """# 1 · Title

### ABC-ONE · First

> It MUST
> hold.

```python
def one():
    return 1
```

```pycon
>>> one()
1
```
"""


def write(tmp_path, text):
    """The path of a chapter with this text."""
    path = tmp_path / "01-title.md"
    path.write_text(text)
    return path


def test_a_chapter_has_clauses_and_blocks(tmp_path):
    chapter = chapters.parse(write(tmp_path, GOOD))
    (clause,) = chapter.clauses
    assert (chapter.stem, chapter.title) == ("title", "1 · Title")
    assert (clause.id, clause.title, clause.line) == ("ABC-ONE", "First", 3)
    assert clause.sentence == "It MUST hold."
    assert [(b.language, b.line) for b in chapter.blocks] == [("python", 9), ("pycon", 14)]


def test_a_table_has_rows_by_the_words_of_its_head_and_the_clause_it_stands_under(tmp_path):
    chapter = chapters.parse(write(tmp_path, GOOD + "\n| name | what for |\n|---|---|\n| `a` | `b` or c |\n| d | |\n"))
    (table,) = chapter.tables
    assert table.clause == "ABC-ONE"
    assert table.rows == ({"name": "a", "what for": "`b` or c"}, {"name": "d", "what for": ""})


def test_the_digest_sees_words_and_not_white_space(tmp_path):
    same = chapters.parse(write(tmp_path, GOOD.replace("MUST\n> hold", "MUST   hold"))).clauses[0].digest
    other = chapters.parse(write(tmp_path, GOOD.replace("hold", "bend"))).clauses[0].digest
    assert chapters.parse(write(tmp_path, GOOD)).clauses[0].digest == same != other


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("> It MUST\n> hold.\n", ""), "clause ABC-ONE has no normative sentence"),
        (GOOD + "\n### ABC-TWO · Second\n\nNothing.\n", "clause ABC-TWO has no normative sentence"),
        (GOOD + "\n### ABC-TWO · Second\n\n## Next\n", "clause ABC-TWO has no normative sentence"),
        (GOOD.replace("MUST\n> hold", "hold"), "clause ABC-ONE says MUST 0 times, expected once"),
        (GOOD.replace("MUST\n> hold", "MAY\n> hold"), "clause ABC-ONE says MUST 0 times, expected once"),
        (GOOD.replace("hold.", "hold and MUST NOT break."), "clause ABC-ONE says MUST 2 times, expected once"),
        (GOOD.replace("hold.", "hold.\n> It MUST stay."), "clause ABC-ONE says MUST 2 times, expected once"),
        (GOOD + "\n> Another MUST.\n", "a block quote outside of a clause"),
        (GOOD + "\n### ABC-ONE · Again\n\n> It MUST.\n", "clause ABC-ONE is defined twice"),
        (
            GOOD.replace("```python", "```pyhton"),
            "expected a block of python or pycon, got 'pyhton', which would not run",
        ),
        (GOOD.replace("```python", "```"), "expected a block of python or pycon, got ''"),
        (GOOD.replace("return 1", "return 1 +"), "invalid syntax"),
        (GOOD.replace(">>> one()", "> one()"), "a pycon block without a prompt"),
        (GOOD.replace(">>> one()", ">>>one()"), "line 1 of the docstring .* lacks blank after >>>"),
    ],
)
def test_a_chapter_that_breaks_the_form_is_an_error(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"01-title.md:\\d+: {message}"):
        chapters.parse(write(tmp_path, text))


def test_definitions_are_a_module_whose_tracebacks_point_into_the_chapter():
    module = chapters.load("affine")
    assert module.quantize(0.5, 1.0, 1, 0, 255) == 1
    path = chapters.chapter("affine").path
    line = module.quantize.__code__.co_firstlineno
    assert path.read_text().splitlines()[line - 1].startswith("def quantize(")
    assert chapters.load("affine") is module


def test_an_unknown_chapter_is_refused():
    with pytest.raises(ValueError, match="stem: expected one of affine, observers, .*, got 'nothing'"):
        chapters.load("nothing")


def test_every_id_is_unique_and_belongs_to_its_chapter():
    prefixes = {stem: {clause.id[:3] for clause in chapters.chapter(stem).clauses} for stem in chapters.stems()}
    assert all(len(ids) == 1 for ids in prefixes.values())
    assert len(set.union(*prefixes.values())) == len(prefixes)
