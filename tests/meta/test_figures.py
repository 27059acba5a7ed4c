"""The chapters' figures: each is what its code draws, has a name for readers who cannot see it, and is shown."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "spec" / "site"))

import figures  # noqa: E402
import pictures  # noqa: E402

CHAPTERS = sorted((ROOT / "spec").glob("[0-9][0-9]-*.md"))
DRAWN = {f"spec/figures/{draw.__name__}.svg": draw for draw in figures.ALL}
DRAWN |= {f"spec/guides/{draw.__name__}.svg": draw for draw in (pictures.observers, pictures.kernels)}


@pytest.mark.parametrize("path", DRAWN)
def test_a_figure_is_what_its_code_draws(path):
    advice = "python spec/site/figures.py (for guides: pictures.py) writes it anew"
    assert (ROOT / path).read_text(encoding="utf-8") == DRAWN[path](), advice


def test_every_chapter_shows_a_figure_in_words_too_and_no_figure_is_left_over():
    shown = set()
    for chapter in CHAPTERS:
        found = re.findall(r"!\[([^\]]*)\]\(figures/(\w+\.svg)\)", chapter.read_text(encoding="utf-8"))
        assert found and all(len(words) > 40 for words, _ in found), chapter.name
        shown |= {name for _, name in found}
    assert shown == {path.name for path in (ROOT / "spec" / "figures").glob("*.svg")}
