"""Processes that tests are given as copies begin and end as those that are started."""

import os
import signal
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
FLAGS = ("-W", "ignore")


def run(sources, code, *, told="", **variables):
    return sources.run(code, told, environment={**os.environ, **variables}, options=FLAGS)


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("", 0),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit()", 0),
        ("import sys; sys.exit('why')", 1),
        ("import os; os._exit(4)", 4),
        ("1 / 0", 1),
        ("import os; os.abort()", -signal.SIGABRT),
    ],
)
def test_how_a_copy_ends_is_told(sources, code, end):
    assert run(sources, code).returncode == end


def test_a_copy_is_told_what_to_do_and_what_it_says_is_heard(sources):
    code = "import sys; print(sys.stdin.read()[::-1]); print('aside', file=sys.stderr)"
    done = run(sources, code, told="abc" * 10**5)
    assert (done.stdout, done.stderr) == ("cba" * 10**5 + "\n", "aside\n")
    assert "ZeroDivisionError" in run(sources, "1 / 0").stderr


def test_a_copy_has_nothing_of_ours_and_nothing_of_other_copies(sources):
    ours = "[name for name in sys.modules if name.startswith('quantspec') or name == 'forking']"
    assert run(sources, f"import sys; print({ours}); import json.tool; x = 1").stdout == "[]\n"
    said = run(sources, "import sys; print('json.tool' in sys.modules, 'x' in globals(), __name__)").stdout
    assert said == "False False __main__\n"


def test_a_copy_has_its_own_environment_and_leads_a_group(sources):
    for value in ("one", "two"):
        code = "import os; print(os.environ['QUANTSPEC_TEST'], os.getpgid(0) == os.getpid())"
        assert run(sources, code, QUANTSPEC_TEST=value).stdout == f"{value} True\n"


def test_a_copy_holds_no_files_of_whoever_made_it(sources):
    if not sys.platform.startswith("linux"):
        pytest.skip("open files are listed in /proc on Linux alone")
    code = "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])"  # the last is of the listing
    assert run(sources, code).stdout == "[0, 1, 2]\n"
