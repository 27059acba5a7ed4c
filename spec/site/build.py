"""``make docs``: puts the site's pages together in ``out/docs``, and has MkDocs make ``out/site`` of them.

Pages stay where readers of the repository find them; here their links are turned to the site's, formulas become MathML
(which browsers draw without a script), and each public name gets a page.
"""

import inspect
import io
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path

import latex2mathml.converter

import quantspec
from quantspec import chapters, cli
from quantspec.conformance import report_html, results

ROOT = Path(__file__).parents[2]
DOCS, SITE = ROOT / "out" / "docs", ROOT / "out" / "site"
# Where pages of the repository are in the site.
MOVED = {"README.md": "index.md", "spec/README.md": "specification.md", "tests/README.md": "tests.md"}
# What is public beside the names of the package.
MODULES = ("quantspec.backends.protocol", "quantspec.chapters", "quantspec.onnx_export.check", "quantspec.errors")
COMMANDS = ((), ("run",), ("zoo",), ("conformance",), ("fingerprint",))


def main() -> int:
    """Builds the site; the exit code of MkDocs, which fails for a link that leads nowhere."""
    shutil.rmtree(DOCS, ignore_errors=True)
    pages = [*(ROOT / "spec").glob("*.md"), *(ROOT / "spec" / "guides").glob("*.md"), ROOT / "README.md"]
    for page in [*pages, ROOT / "tests" / "README.md"]:
        place = place_of(page)
        write(place, with_formulas(with_links(page, place, page.read_text(encoding="utf-8"))))
    for picture in (ROOT / "spec").glob("*/*.svg"):
        (DOCS / place_of(picture)).parent.mkdir(exist_ok=True)
        shutil.copy(picture, DOCS / place_of(picture))
    for name in ("environment.md", "site.css"):
        shutil.copy(Path(__file__).parent / name, DOCS)
    write("command.md", command_page())
    write_api()
    recorded = chapters.directory() / "results"
    write("conformance-matrix.html", report_html.page(results.read_all(recorded), results.read_known(recorded)))
    matrix = "[Open the whole matrix](conformance-matrix.html), one page to click through."
    write("matrix.md", f"# The conformance matrix\n\n{matrix}\n")
    settings = str(Path(__file__).with_name("mkdocs.yml"))
    return subprocess.call([sys.executable, "-m", "mkdocs", "build", "-q", "-f", settings])


def place_of(page: Path) -> str:
    """Where a page of the repository is in the site."""
    name = page.relative_to(ROOT).as_posix()
    return MOVED.get(name, name.removeprefix("spec/"))


def write(place: str, text: str) -> None:
    path = DOCS / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def with_links(page: Path, place: str, text: str) -> str:
    """A page whose links lead to pages of the site; those to files that are no pages become their names."""
    def link(found: re.Match[str]) -> str:
        words, target = found[1], found[2]
        if "://" in target or target.startswith("#"):
            return found[0]
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve()
        if not file.is_relative_to(ROOT) or file.suffix not in (".md", ".svg"):
            return words
        up = "../" * place.count("/")
        return f"[{words}]({up}{place_of(file)}{'#' + anchor if anchor else ''})"

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", link, text)


def with_formulas(text: str) -> str:
    """A page whose formulas, between ``$$`` and within a line between ``$``, are MathML."""
    def formula(found: re.Match[str]) -> str:
        return latex2mathml.converter.convert(found[1].strip(), display="block")

    def in_line(found: re.Match[str]) -> str:
        return latex2mathml.converter.convert(found[1])

    # Code is left as it is.
    pieces = re.split(r"(^```.*?^```$|`[^`\n]*`)", text, flags=re.MULTILINE | re.DOTALL)
    for index in range(0, len(pieces), 2):
        blocks = re.sub(r"^\$\$\n(.*?)\n\$\$$", formula, pieces[index], flags=re.MULTILINE | re.DOTALL)
        pieces[index] = re.sub(r"\$(?=\S)([^$\n]+?)(?<=\S)\$", in_line, blocks)
    return "".join(pieces)


def command_page() -> str:
    """The command line's help texts."""
    parts = ["# Command line\n"]
    for command in COMMANDS:
        with redirect_stdout(io.StringIO()) as out, suppress(SystemExit):
            cli.main([*command, "--help"])
        parts.append(f"## {' '.join(('quantspec', *command))}\n\n```text\n{out.getvalue().strip()}\n```\n")
    return "\n".join(parts)


def write_api() -> None:
    """A page for each public name, and their index."""
    rows = []
    for name in sorted(quantspec.__all__, key=str.lower):
        write(f"api/{name}.md", f"::: quantspec.{name}\n")
        rows.append(f"| [`{name}`]({name}.md) | {summary(getattr(quantspec, name))} |")
    for name in MODULES:
        write(f"api/{name}.md", f"::: {name}\n")
        rows.append(f"| [`{name}`]({name}.md) | {summary(sys.modules.get(name) or __import__(name, fromlist=['_']))} |")
    write("api/index.md", "\n".join(["# API reference\n", "| name | what it is |", "|---|---|", *rows, ""]))


def summary(what: object) -> str:
    """The first sentence of a docstring."""
    text = " ".join((inspect.getdoc(what) or "").split())
    return re.split(r"(?<=[.:])\s", text, maxsplit=1)[0].replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
