"""What the command says: of backends in the current folder, and of results that are not there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quantspec import chapters, cli
from quantspec.conformance import checks, run
from quantspec.conformance.session import Session


def backend_of_the_page():
    """The code of the backend that the page on backends shows."""
    page = (chapters.directory() / "your-backend.md").read_text(encoding="utf-8")
    return re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1]


@pytest.mark.parametrize("operation", ["quantize", "linear"])
def test_the_backend_of_the_page_speaks_the_dialect_that_it_declares(operation):
    """It is said to be complete: whoever copies it and changes nothing sees no difference."""
    names = {}
    exec(backend_of_the_page(), names)  # noqa: S102
    check = next(c for c in checks.CHECKS if (c.clause, c.operation) == ("BAK-DIALECT", operation))
    found = run.examine(check, Session(names["MyBackend"]()), 20)
    assert [finding.outcome for finding in found] == ["pass"] and found[0].outputs > 100


def test_a_backend_is_found_in_the_current_folder(tmp_path):
    """The one of the page on backends, saved under the name that the page gives."""
    (tmp_path / "my_backend.py").write_text(backend_of_the_page())
    # As the installed script runs it, whose own folder is the first of the path, and not the current one.
    script = tmp_path / "bin" / "quantspec"
    script.parent.mkdir()
    script.write_text("import sys\nfrom quantspec.cli import main\nsys.exit(main())\n")
    command = [sys.executable, str(script), "fingerprint", "my_backend:MyBackend"]
    there = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    run = subprocess.run(command, cwd=tmp_path, env=there, capture_output=True, text=True)
    assert run.returncode == 0 and "the choices of my_backend:MyBackend" in run.stdout, run.stderr
    assert max(map(len, run.stdout.splitlines())) <= 80


def test_a_backend_that_is_nowhere_is_answered_with_what_is_missing(capsys):
    assert cli.main(["fingerprint", "no_such_module_here:MyBackend"]) == 2
    assert "no_such_module_here:MyBackend: not installed: there is no module" in capsys.readouterr().err
    assert cli.main(["fingerprint", "onnxruntme"]) == 2
    assert "got 'onnxruntme'; did you mean onnxruntime" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--examples 0", "--examples -1", "--seconds 0", "--seconds nan"])
def test_numbers_that_ask_for_nothing_are_refused_before_a_backend_starts(words, capsys):
    option, number = words.split()
    assert cli.main(["conformance", "--backend", "quantspec-exact", option, number]) == 2
    assert f"{option}: expected" in (said := capsys.readouterr().err) and said.endswith(f"got {number}\n")


def test_recorded_results_that_are_not_there_are_asked_for(tmp_path, monkeypatch, capsys):
    """As in an installed package, which has the chapters, and why divergences are known, but no results."""
    (tmp_path / "results").mkdir()
    shutil.copy(chapters.directory() / "results" / "known.toml", tmp_path / "results")
    monkeypatch.setattr(chapters, "directory", lambda: tmp_path)
    assert cli.main(["conformance", "--recorded"]) == 2
    assert "--recorded: expected a folder with recorded results" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["run"], ["zoo"], ["conformance"], ["fingerprint"]])
def test_help_fits_a_terminal(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
