"""``make docs``: puts the site's pages together in ``out/docs``, and has MkDocs make ``out/site`` of them.

Pages stay where readers of the repository find them; here their links are turned to the site's, formulas become MathML
(which browsers draw without a script), and each public name gets a page.
"""

import functools
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from xml.etree import ElementTree

import implemented

import quantspec
from quantspec import chapters, cli
from quantspec.conformance import report_html, results

ROOT = Path(__file__).parents[2]
OUT = ROOT / "out"
DOCS, SITE = OUT / "docs", OUT / "site"
# Where pages of the repository are in the site.
MOVED = {
    "README.md": "index.md",
    "spec/README.md": "specification.md",
    "spec/site/environment.md": "environment.md",
    "tests/README.md": "tests.md",
}
# What is public beside the names of the package.
MODULES = ("quantspec.backends.protocol", "quantspec.chapters", "quantspec.onnx_export.check", "quantspec.errors")
COMMANDS = ((), ("run",), ("zoo",), ("conformance",), ("fingerprint",))
ElementTree.register_namespace("", "http://www.w3.org/1998/Math/MathML")
CODE = r"^```.*?^```$|`[^`\n]*`"  # what stays as it is


def main() -> int:
    """Builds the site; 1 where MkDocs warns, as it does for a link that leads nowhere, and 0 otherwise."""
    shutil.rmtree(DOCS, ignore_errors=True)
    spec = ROOT / "spec"
    backends = sorted(spec.glob("results/*/README.md"))
    for page in [ROOT / "README.md", ROOT / "tests" / "README.md", *spec.rglob("*.md")]:
        write_page(page)
    for picture in spec.rglob("*.svg"):
        place = DOCS / picture.relative_to(spec)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, place)
    shutil.copy(Path(__file__).with_name("site.css"), DOCS)
    write("command.md", command_page())
    names = write_api()
    recorded = chapters.directory() / "results"
    write("conformance-matrix.html", report_html.page(results.read_all(recorded), results.read_known(recorded)))
    matrix = "[Open the whole matrix](conformance-matrix.html), one page to click through."
    write("matrix.md", f"# The conformance matrix\n\n{matrix}\n")
    machines = sorted(spec.glob("results/performance/*.md"))
    places = [[place_of(page) for page in pages] for pages in (backends, machines)]
    (OUT / "mkdocs.yml").write_text(settings(names, *places), encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(OUT / "mkdocs.yml")]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=quiet)
    for line in run.stderr.splitlines():
        if not line.startswith("INFO"):
            print(line, file=sys.stderr)
    if run.returncode == 0:
        link_names(names)
        print(f"{SITE.relative_to(ROOT)}/index.html")
    return run.returncode


def settings(names: list[str], backends: list[str], machines: list[str]) -> str:
    """MkDocs' settings: those beside this file, with the pages of public names, backends and machines listed."""
    text = Path(__file__).with_name("mkdocs.yml").read_text(encoding="utf-8")
    api = [f"          - {name}: api/{name}.md" for name in names]
    single = [f"          - {Path(place).parent.name.rpartition('-avx')[0]}: {place}" for place in backends]
    measured = [f"          - {Path(place).stem.partition('-family')[0]}: {place}" for place in machines]
    for page, others in (("api/index.md", api), ("conformance.md", single), ("performance.md", measured)):
        text = text.replace(f"          - {page}", "\n".join([f"          - {page}", *others]))
    return text


def write_page(page: Path) -> None:
    """Puts a page of the repository into the site."""
    place = place_of(page)
    text = with_formulas(with_links(page, place, page.read_text(encoding="utf-8")))
    if re.match(r"\d\d-", place):
        text = implemented.with_places(text, clause_places())
    front = {"index.md": "hide: [navigation]"}.get(place)
    if place.startswith("guides/") or place == "your-backend.md":
        front = "search: { boost: 4 }"  # a word is explained there, and used everywhere
    elif place.startswith("results/") or place in ("errors.md", "coverage.md"):
        front = "search: { exclude: true }"  # records, which would stand before what explains them
    write(place, f"---\n{front}\n---\n\n{text}" if front else text)


@functools.cache
def clause_places() -> dict[str, list[str]]:
    return implemented.places()


def link_names(names: list[str]) -> None:
    """Makes links of public names where pages of the reference and guides name them in code."""
    for page in [*(SITE / "api").glob("*.html"), *(SITE / "guides").glob("*.html")]:
        up = "" if page.parent.name == "api" else "../api/"

        def link(found: re.Match[str], page: Path = page, up: str = up) -> str:
            name = found[1].removeprefix("qs.").removesuffix("()")
            other = name in names and (up != "" or name != page.stem)
            return f'<a href="{up}{name}.html">{found[0]}</a>' if other else found[0]

        text = page.read_text(encoding="utf-8")
        text = re.sub(r"(?<!<a)(?<!\">)<code>([\w.]+(?:\(\))?)</code>(?!</a>)", link, text)
        page.write_text(text, encoding="utf-8")


def place_of(page: Path) -> str:
    """Where a page of the repository is in the site."""
    name = page.relative_to(ROOT).as_posix()
    return MOVED.get(name, name.removeprefix("spec/"))


def write(place: str, text: str) -> None:
    path = DOCS / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def with_links(page: Path, place: str, text: str) -> str:
    """A page whose links lead to pages of the site, those to public modules to the reference; those to other files that
    are no pages become their names."""
    def link(found: re.Match[str]) -> str:
        words, target = found[1], found[2]
        if "://" in target or target.startswith("#"):
            return found[0]
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve()
        up = "../" * place.count("/")
        module = ".".join(file.relative_to(ROOT / "impl").with_suffix("").parts) if "/impl/" in f"/{path}" else ""
        if module in MODULES:
            return f"[{words}]({up}api/{module}.md)"
        if not file.is_relative_to(ROOT) or file.suffix not in (".md", ".svg"):
            return words
        return f"[{words}]({up}{place_of(file)}{'#' + anchor if anchor else ''})"

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", link, text)


def with_formulas(text: str) -> str:
    """A page whose formulas, between ``$$`` on lines of their own or ``$`` in a line, are MathML."""
    import latex2mathml.converter

    def formula(found: re.Match[str]) -> str:
        if found["code"]:
            return found[0]
        block = found["block"] is not None
        source = " ".join((found["block"] or found["inline"]).split())
        drawn = latex2mathml.converter.convert(source, display="block" if block else "inline")
        drawn = with_limits(drawn) if block else drawn
        drawn = drawn.replace("*", "&#42;").replace("|", "&#124;")  # which Markdown would read otherwise
        return drawn if block else f"<span>{drawn}</span>"  # a line that begins with <math> would be a block

    kinds = rf"(?P<code>{CODE})|^\$\$\n(?P<block>.*?)\n\$\$$|(?<![\\\w$])\$(?P<inline>[^$`]+?)\$(?![\w$])"
    return re.sub(kinds, formula, text, flags=re.MULTILINE | re.DOTALL)


def with_limits(drawn: str) -> str:
    """A formula of its own line in MathML, with the limits of its sums below and above them, and not beside."""
    math = ElementTree.fromstring(drawn)
    for part in math.iter():
        if len(part) and part[0].text == "∑":
            part.tag = part.tag.replace("msubsup", "munderover").replace("msub", "munder")
    return ElementTree.tostring(math, encoding="unicode")


def command_page() -> str:
    """The command line's help texts."""
    parts = ["# Command line\n"]
    for command in COMMANDS:
        with redirect_stdout(io.StringIO()) as out, suppress(SystemExit):
            cli.main([*command, "--help"])
        parts.append(f"## {' '.join(('quantspec', *command))}\n\n```text\n{out.getvalue().strip()}\n```\n")
    return "\n".join(parts)


def write_api() -> list[str]:
    """A page for each public name, and their index; the names."""
    names = [*sorted(quantspec.__all__, key=str.lower), *MODULES]
    rows = []
    for name in names:
        module = name in MODULES
        what = __import__(name, fromlist=["_"]) if module else getattr(quantspec, name)
        page = f"::: {name if module else f'quantspec.{name}'}\n"
        if members := getattr(what, "__all__", None):
            page += f"    options: {{ members: [{', '.join(members)}] }}\n"
        write(f"api/{name}.md", page)
        rows.append(f"| [`{name}`]({name}.md) | {summary(what)} |")
    write("api/index.md", "\n".join(["# API reference\n", "| name | what it is |", "|---|---|", *rows, ""]))
    return names


def summary(what: object) -> str:
    """The first sentence of a docstring, up to a colon where it has one."""
    text = " ".join((inspect.getdoc(what) or "").split())
    return re.sub(r":$", ".", re.split(r"(?<=[.:])\s", text, maxsplit=1)[0]).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
