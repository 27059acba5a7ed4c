"""The driver of the mutation tester, on made-up results; and the list of equivalent mutants beside the code."""

import ast
import builtins
import fnmatch
import functools
import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from mutants import run
from mutants.run import Change, Mutant

RESULTS = """
    quantspec.numerics.affine.x_along__mutmut_1: killed
    quantspec.numerics.affine.xǁQParamsǁquantize__mutmut_12: survived
    quantspec.ptq.static.xǁ_Converterǁas_float__mutmut_3: timeout
    quantspec.ptq.static.x_source__mutmut_2: no tests
"""
SHOWN = """# quantspec.numerics.affine.xǁQParamsǁquantize__mutmut_12: survived
--- src/quantspec/numerics/affine.py
+++ src/quantspec/numerics/affine.py
@@ -1,4 +1,5 @@
     def quantize(self, x):
-        return f(
-            x, axis=self.axis)
+        return f(
+            x, axis=None)
         # the end
"""
ENTRY = """
[[equivalent]]
module = "numerics.affine"
function = "along"
before = "a + b"
after = ["a - b", "a * b"]
reason = "b is 0"
"""


def along(before, after):
    """A change of the function ``along``."""
    return Change("numerics.affine", "along", before, after)


def mutant(status, change=None, module="numerics.affine"):
    """A mutant of the function ``along``."""
    return Mutant(module, f"quantspec.{module}.x_along__mutmut_1", status, change)


def test_results_and_changes_are_read_from_the_tools_words():
    mutants = run.read_results(RESULTS)
    assert [(m.module, m.status) for m in mutants] == [
        ("numerics.affine", "killed"),
        ("numerics.affine", "survived"),
        ("ptq.static", "timeout"),
        ("ptq.static", "no tests"),
    ]
    assert mutants[2].name == "quantspec.ptq.static.xǁ_Converterǁas_float__mutmut_3"
    change = run.read_change(mutants[1], SHOWN)
    before, after = "return f(\nx, axis=self.axis)", "return f(\nx, axis=None)"
    assert change == Change("numerics.affine", "QParams.quantize", before, after)
    functions = [run.read_change(mutant, SHOWN).function for mutant in mutants]
    assert functions == ["along", "QParams.quantize", "_Converter.as_float", "source"]


def test_an_entry_explains_each_of_its_changes():
    assert run.read_equivalents(ENTRY) == {along("a + b", "a - b"): "b is 0", along("a + b", "a * b"): "b is 0"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('reason = "b is 0"', 'reason = "  "', "expected module, function, before, after and reason"),
        ('reason = "b is 0"', "", "expected module, function, before, after and reason"),
        ('"numerics.affine"', '"afine"', "expected a module of backends, .*, got 'afine'"),
        ('"a * b"', '"a - b"', "stands twice"),
    ],
)
def test_an_entry_that_lacks_something_is_refused(old, new, message):
    with pytest.raises(ValueError, match=f"^equivalent: {message}"):
        run.read_equivalents(ENTRY.replace(old, new))


def test_every_module_belongs_to_a_part_and_every_part_has_tests():
    package = run.ROOT / "impl" / "quantspec"
    rooms = {path.stem for path in package.iterdir() if path.stem in run.ROOMS}
    assert rooms == set(run.ROOMS)
    assert run.modules_of("ptq.static") == ["ptq.static"] and "ptq.static" not in run.modules_of("ptq")
    assert run.modules_of("comparison.layers") == ["comparison.layers"] and "storage.file" in run.modules_of("storage")
    for room in run.ROOMS:
        for module in run.modules_of(room):
            assert all((run.ROOT / "tests" / name).exists() for name in run.tests_of(module)), module
    with pytest.raises(ValueError, match="^module: expected one of numerics.affine, .*, got 'stroage'$"):
        run.modules_of("stroage")


def test_what_became_of_a_module_is_kept_until_it_or_its_tests_change(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "WORK", tmp_path)
    attacked = []
    found = [mutant("killed"), mutant("survived", along("a + b", "a - b"))]
    monkeypatch.setattr(run, "attack", lambda module, workers: attacked.append(module) or found)
    for anew in (False, False, True):
        assert run.outcome("numerics.affine", 2, anew=anew) == found
    assert len(attacked) == 2
    monkeypatch.setattr(run, "state", lambda module: "another")
    assert run.outcome("numerics.affine", 2, anew=False) == found and len(attacked) == 3


def test_the_functions_that_changed_are_those_whose_code_did():
    before = "def a():\n    return 1\n\n\ndef b():\n    return 2\n\n\nclass C:\n    def a(self):\n        return 3\n"
    assert run.changed_functions(before, before.replace("2", "2  # as before")) == []
    assert run.changed_functions(before, before.replace("3", "4")) == ["C.a"]
    assert run.changed_functions(before, before.replace("b()", "c()").replace("1", "0")) == ["a", "c"]
    assert run.changed_functions("", before) == ["a", "b", "C.a"]


def test_functions_are_decorated_below_what_is_mutated():
    source = """\
@near_names
@quantspec.usual
def a(
    x,
):
    return x


class C:
    @property
    def b(self):
        return 1

    @cache
    def c(self):
        return 2
"""
    expected = """\
def a(
    x,
):
    return x
a = near_names(quantspec.usual(a))


class C:
    @property
    def b(self):
        return 1

    def c(self):
        return 2
    c = cache(c); __import__('builtins').__dict__.setdefault('caches', []).append(c)
"""
    assert run.with_decorators_called(source) == expected


def test_functions_that_run_at_import_get_a_decorator_that_does_nothing():
    source = "def a():\n    return 1\n\n\ndef ab():\n    return a()\n"
    changed = run.left_alone(source, ["a"])
    assert changed == "@(lambda function: function)\n" + source
    names = {}
    exec(changed, names)
    assert names["ab"]() == 1
    with pytest.raises(ValueError, match="^expected one function 'b', found 0$"):
        run.left_alone(source, ["b"])
    for module, functions in run.SOME_AT_IMPORT.items():
        text = (run.ROOT / "impl" / "quantspec" / run.path_of(module)).read_text(encoding="utf-8")
        assert run.left_alone(text, functions).count("@(lambda function: function)") == len(functions)


def test_caches_are_emptied_before_each_test(monkeypatch):
    @functools.cache
    def number():
        return object()

    monkeypatch.setattr(builtins, "caches", [number], raising=False)
    hooks = {}
    exec(run.EMPTYING, hooks)
    first = number()
    hooks["pytest_runtest_setup"]()
    assert number() is not first


def test_tests_in_a_fork_may_start_threads_as_tests_do_elsewhere(monkeypatch):
    pool, hooks = SimpleNamespace(forked=True), {}
    monkeypatch.setitem(sys.modules, "quantspec.kernels.threads", SimpleNamespace(pool=pool))
    exec(run.EMPTYING, hooks)
    hooks["pytest_runtest_setup"]()
    assert pool.forked is False


@pytest.mark.parametrize(("tried", "kept"), [("", ["a2"]), ("stats", None), ("quantspec.x__mutmut_1", None)])
def test_without_a_mutant_the_quickest_test_alone_runs(monkeypatch, tried, kept):
    took = {"a1": 2.0, "a2": 1.0, "b1": 4.0, "b2": 5.0}
    items = [SimpleNamespace(nodeid=name, path=name[0]) for name in took]
    monkeypatch.setenv("MUTANT_UNDER_TEST", tried)
    state = SimpleNamespace(state=lambda: SimpleNamespace(duration_by_test=took))
    monkeypatch.setitem(sys.modules, "mutmut", SimpleNamespace(state=state))
    monkeypatch.setitem(sys.modules, "mutmut.state", state)
    deselected, hooks = [], {}
    config = SimpleNamespace(hook=SimpleNamespace(pytest_deselected=lambda items: deselected.extend(items)))
    exec(run.QUICKEST, hooks)
    hooks["pytest_collection_modifyitems"](config, items)
    assert [item.nodeid for item in items] == (kept or list(took))
    assert {item.nodeid for item in (*items, *deselected)} == set(took)


def test_tests_that_fail_where_a_part_is_mutated_are_left_out_for_it_and_its_room_alone():
    for test in run.LEFT_OUT["capture.recorder"]:
        for part in ("capture.recorder", "capture"):
            assert f"    --deselect\n    tests/{test}\n" in run.settings_of(part)
        assert test not in run.settings_of("capture.calls")
    (test,) = run.LEFT_OUT["storage"]
    assert all(f"    tests/{test}\n" in run.settings_of(part) for part in ("storage", "storage.file"))
    assert test not in run.settings_of("module")
    assert "\npytest_add_cli_args_test_selection =\n    tests/capture/" in run.settings_of("capture.recorder")


def test_a_change_picks_the_names_of_its_mutants():
    mutants = run.read_results(RESULTS)
    for function, names in (("along", [mutants[0].name]), ("QParams.quantize", [mutants[1].name]), ("quantize", [])):
        assert fnmatch.filter([each.name for each in mutants], run.pattern("numerics.affine", function)) == names
    with pytest.raises(ValueError, match="^since: expected a commit of this repository, got 'no-such-commit'$"):
        run.check_commit("no-such-commit")


def test_mutants_are_sorted_by_what_became_of_them():
    survivors = [mutant("survived", along("a + b", "a - b")), mutant("survived", along("a + b", "a / b"))]
    odd = [mutant(status, along("a + b", "a * b")) for status in ("no tests", "suspicious", "not checked")]
    dead = mutant("killed"), mutant("segfault"), mutant("timeout")
    verdict = run.judge([*dead, *survivors, *odd], run.read_equivalents(ENTRY))
    assert (len(verdict.killed), len(verdict.timed_out)) == (2, 1)
    assert (verdict.equivalent, verdict.unexplained) == (survivors[:1], [survivors[1], *odd])
    assert verdict.stale == [along("a + b", "a * b")]
    assert verdict.last_line() == "mutants: 3 of 8 killed, 1 equivalent, 4 unexplained"
    assert not verdict.passes


def test_what_any_signal_ended_is_killed():
    statuses = {"x": "suspicious", "y": "suspicious", "z": "killed"}
    mutants = [Mutant("a", name, status) for name, status in statuses.items()]
    found = run.with_signals(mutants, '{"exit_code_by_key": {"x": -6, "y": 35, "z": 1, "other": null}}')
    assert [mutant.status for mutant in found] == ["segfault", "suspicious", "killed"]


def test_one_entry_explains_one_mutant():
    twice = [mutant("survived", along("a + b", "a - b"))] * 2
    assert len(run.judge(twice, run.read_equivalents(ENTRY)).unexplained) == 1


def test_a_listed_mutant_that_takes_too_long_on_a_busy_machine_is_still_listed():
    slow = mutant("timeout", along("a + b", "a - b"))
    verdict = run.judge([slow], run.read_equivalents(ENTRY))
    assert verdict.equivalent == [slow] and not verdict.timed_out


@pytest.mark.parametrize(("killed", "equivalent", "passes"), [(950, 50, True), (949, 51, False)])
def test_too_many_equivalent_mutants_fail(killed, equivalent, passes):
    reasons = {along("a", str(i)): "so it is" for i in range(equivalent)}
    verdict = run.judge([mutant("killed")] * killed + [mutant("survived", change) for change in reasons], reasons)
    assert verdict.last_line() == f"mutants: {killed} of 1000 killed, {equivalent} equivalent, 0 unexplained"
    assert verdict.passes is passes
    assert any("less than 95 %" in line for line in run.account(verdict, reasons)) is not passes


def test_no_unexplained_survivor_and_no_stale_entry_passes():
    reasons = {along("a", "b"): "so it is"}
    killed = [mutant("killed")] * 99
    assert run.judge([*killed, mutant("survived", along("a", "b"))], reasons).passes
    assert not run.judge([*killed, mutant("survived", along("a", "c"))], {}).passes
    assert not run.judge(killed, reasons).passes
    assert not run.judge([], {}).passes


def test_the_account_says_what_each_survivor_changes_and_what_is_to_be_done():
    reasons = {along("a", "b"): "so\n  it is", along("a", "d"): "no more"}
    verdict = run.judge([mutant("survived", along("a", "b")), mutant("no tests", along("a", "c"))], reasons)
    lines = run.account(verdict, reasons)
    assert lines[:4] == ["numerics.affine.along", "    - a", "    + b", "    equivalent: so it is"]
    assert lines[8].startswith("    UNEXPLAINED (no tests)") and lines[13].startswith("    STALE")
    assert lines[15].startswith("The score is 0.0 %")


def test_the_table_has_a_row_for_each_module_and_one_for_all():
    static = [mutant("timeout", module="ptq.static"), mutant("survived", along("a", "b"), "ptq.static")]
    verdict = run.judge([mutant("killed")] * 3 + static, {})
    text = io.StringIO()
    Console(file=text, width=100).print(run.table(verdict, ["numerics.affine", "ptq.static"]))
    rows = [line.split() for line in text.getvalue().replace("│", " ").splitlines() if "%" in line]
    assert rows == [
        ["numerics.affine", "3", "3", "0", "0", "0", "100.0", "%"],
        ["ptq.static", "2", "0", "1", "0", "1", "50.0", "%"],
        ["all", "5", "3", "1", "0", "1", "80.0", "%"],
    ]


def source_of(module: str, function: str) -> str:
    """The code of a function, read and not imported, as a module may need what is not installed."""
    text = (run.ROOT / "impl" / "quantspec" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    node = ast.parse(text)
    for name in function.split("."):
        kinds = ast.FunctionDef, ast.ClassDef
        node = next(each for each in node.body if isinstance(each, kinds) and each.name == name)
    return "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])


def test_the_list_is_about_code_that_is_there():
    for change in run.read_equivalents(run.EQUIVALENT.read_text(encoding="utf-8")):
        where = f"{change.module}.{change.function} has no line {change.before!r} any more"
        source = run.without_indentation(source_of(change.module, change.function))
        assert change.before in source, f"{where}: see tests/mutants/{run.EQUIVALENT.name}"
        assert change.before != change.after


def test_every_module_has_the_tests_of_its_chapter():
    for module, tests in run.TESTS.items():
        assert (run.ROOT / "impl" / "quantspec" / f"{module.replace('.', '/')}.py").exists()
        assert tests and all((run.ROOT / "tests" / name).exists() for name in tests)
