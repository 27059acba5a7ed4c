"""The pages that people read: links lead somewhere, public names have pages, and the commands that they show exist."""

import importlib.util
import re
from pathlib import Path

import pytest

import quantspec
from quantspec import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "tests" / "README.md", *sorted((ROOT / "spec").rglob("*.md"))]
SHOWN = [ROOT / "README.md", ROOT / "spec" / "your-backend.md", *sorted((ROOT / "spec" / "guides").glob("*.md"))]


@pytest.fixture(scope="module")
def build():
    """The program that makes the site."""
    program = ROOT / "spec" / "site" / "build.py"
    found = importlib.util.spec_from_file_location("site_build", program)
    module = importlib.util.module_from_spec(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(program.parent)  # as where it is run as a program
        found.loader.exec_module(module)
    return module


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site name them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    named = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return named | slugs | {re.sub(r"-+", "-", slug) for slug in slugs}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), target


def test_every_public_name_has_a_page_and_a_line_in_the_contents(build, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "DOCS", tmp_path)
    names = build.write_api()
    assert set(quantspec.__all__) <= set(names)
    contents = build.settings(names, [], [])
    for name in names:
        page = (tmp_path / "api" / f"{name}.md").read_text()
        assert page.splitlines()[0] in (f"::: quantspec.{name}", f"::: {name}")
        assert f"api/{name}.md" in contents
    index = (tmp_path / "api" / "index.md").read_text()
    empty = [line for line in index.splitlines() if line.startswith("| [") and line.endswith("|  |")]
    assert not empty  # every name says what it is


def test_every_page_is_in_the_contents(build):
    recorded = [page for page in PAGES if page.parent.parent.name == "results"]
    machines = [page for page in recorded if page.parent.name == "performance"]
    backends = [page for page in recorded if page not in machines]
    contents = build.settings([], *([build.place_of(page) for page in pages] for pages in (backends, machines)))
    assert [place for page in PAGES if (place := build.place_of(page)) not in contents] == []


def test_a_link_to_a_public_module_leads_to_its_page_of_the_reference(build):
    page = ROOT / "spec" / "your-backend.md"
    text = "[one](../impl/quantspec/backends/protocol.py) [other](../impl/quantspec/cli.py) [third](README.md#errors)"
    found = build.with_links(page, "your-backend.md", text)
    assert found == "[one](api/quantspec.backends.protocol.md) other [third](specification.md#errors)"


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("What is a zero point?", ["zero", "point"]),
        ("what does -0.06 pp mean", ["-0.06", "pp", "mean"]),
        ("qs.load(path) of AFF-TIES", ["qs", "load", "path", "AFF", "TIES"]),
    ],
)
def test_the_search_takes_the_words_of_a_question_that_say_something(question, words):
    """An "a" would find every word that begins with it."""
    settings = (ROOT / "spec" / "site" / "mkdocs.yml").read_text(encoding="utf-8")
    separator = re.search(r"separator: >-\n +(.*)\n", settings)[1]
    assert [word for word in re.split(separator, question) if word] == words


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.stem)
def test_commands_that_pages_show_are_those_that_there_are(page):
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            command, *words = line.partition("#")[0].split() or [""]
            if command == "quantspec":
                cli.parser().parse_args([word.strip("'") for word in words])
            elif command == "make":
                assert words[0] in targets, line
            else:
                assert command in ("", "pip", "pytest", "git", "cd"), line


def test_the_readme_fits_a_screen_or_two():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 80


def test_the_list_of_targets_fits_a_terminal():
    targets = re.findall(r"^([a-z-]+):.*## (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert len(targets) > 15
    assert [name for name, about in targets if len(f"  {name:16} {about}") > 79] == []
