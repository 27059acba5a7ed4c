"""The mutation score of the chapter modules, and of other parts of the package: ``make mutants``.

Without arguments the chapter modules are attacked; ``make mutants ARGS="storage"`` attacks a room, and a dotted path
one module of it. What became of a module is kept under ``build/mutants`` until the module or its tests change, so that
a run that was cut off goes on where it was; ``--anew`` starts over. ``--since COMMIT`` attacks only the functions that
are not as they were there, which is what ``make test-thorough`` does. ``--sample N`` tries N mutants of each part,
which ``--seed S`` draws at random from all of its modules, and estimates the part's score by them, as all mutants of
the rooms are days of work; it does so for all chapter modules and rooms if none is given. What was tried is kept there
too, and counts for a larger sample.

mutmut changes one thing at a time in a module (a number, an operator, an argument, a word of a message) and runs the
tests of the module's own chapter or room on every such mutant. A mutant that no test rejects has found a hole in the
tests, or code that is not needed, or it computes the same as before: ``equivalent.toml`` lists those, each with its
reason. A survivor that is not listed fails, and so does an entry that is no survivor.

What is not mutated, by mutmut or because it would not load: constants of a module, defaults of dataclass fields,
properties, functions with decorators other than those of ``CALLED``, the modules of ``AT_IMPORT``, and the functions of
``SOME_AT_IMPORT``.
"""

import ast
import contextlib
import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
WORK = ROOT / "build" / "mutants"
QUANTIZING = (
    "capture/test_capture.py", "capture/test_arguments.py", "capture/test_calls.py", "capture/test_lists.py",
    "capture/test_scripted.py", "capture/test_nothing_quantized.py", "chapters/test_08_size.py",
    "chapters/test_08_work.py",
)  # fmt: skip
TESTS = {
    "numerics.affine": ("chapters/test_01_affine.py",),
    "numerics.observers": ("chapters/test_02_observers.py", "errors/test_observer_arguments.py"),
    "numerics.integer": ("chapters/test_03_integer.py", "chapters/test_03_integer_windows.py"),
    "numerics.folding": ("chapters/test_04_fusion.py",),
    # What fusion notes for training is checked where networks are trained.
    "ptq.fusion": ("chapters/test_04_fusion.py", "chapters/test_07_qat_networks.py"),
    # What acts in training mode only is checked where networks are trained, here too.
    "ptq.static": (
        "chapters/test_05_static.py", "chapters/test_05_static_networks.py", "chapters/test_07_qat_acts.py",
        *QUANTIZING,
    ),
    # What stays in float is a clause of chapter 5 for both.
    "ptq.dynamic": (
        "chapters/test_06_dynamic.py", "chapters/test_05_static.py", "chapters/test_05_static_networks.py", *QUANTIZING,
    ),
}
CAPTURING = tuple(
    f"capture/test_{name}.py"
    for name in (
        "forms", "capture", "calls", "arguments", "copies", "written", "writes", "recorded", "recorder", "at_each_call",
        "state_kept", "first_call", "left_in_float", "seldom_written", "layout", "lists", "modes", "outputs",
        "parametrized", "scripted", "files", "training_only", "printed", "surroundings", "split", "types_asked",
        "questions", "normalized", "choices", "answers", "masks_given", "products_moved",
        "resized", "acts_noted", "operators_recorded", "attention_found", "attention_by_letters",
        "whole_graphs", "told_by_capture", "asked_directly", "asked_of_tensors", "numbers_read", "nodes_made",
        "forms_known", "layers_known", "recorded_reads", "builder_asked", "tracer_asked",
    )  # fmt: skip
) + ("chapters/test_07_qat_computed.py",)  # where recipes of computed weights are followed
STORING = tuple(
    f"files/test_{name}.py"
    for name in (
        "storage", "model_storage", "states", "checks", "limits", "paths", "forged_files", "older_files", "array_files",
        "ways_stored", "json_fields", "called_stored", "names_allowed", "steps_checked", "not_written",
        "figures_stated",
    )  # fmt: skip
)
RUNNING = (
    "engines/test_compiled.py", "engines/test_compiled_networks.py", "engines/test_recurrent.py",
    "engines/test_recurrent_calls.py", "engines/test_broadcast.py", "engines/test_pieces.py",
)  # fmt: skip
OF_QAT = (
    "_grids", "_weights", "_steps", "_recurrent", "_networks", "_acts", "_loops", "_ranks", "_run", "_learned",
    "_calls", "_computed", "_prepare", "_layers", "_shapes",
)  # fmt: skip
# The rooms of the package: a room's modules are all tried on the same tests.
ROOMS = {
    "backends": (
        "chapters/test_11_backends.py", "conformance/test_workers.py", "conformance/test_endings.py",
        "conformance/test_reproductions.py", "conformance/test_drawn_alike.py", "conformance/test_adapters_here.py",
        "conformance/test_backends.py", "conformance/test_not_offered.py", "conformance/test_examined.py",
        "tutorial/test_torch_adapter.py", "chapters/test_10_dialects_torch.py",
    ),  # fmt: skip
    "capture": CAPTURING,
    "comparison": (
        "chapters/test_09_accuracy.py", "chapters/test_08_work.py", "output/test_compared.py",
        "output/test_compared_layers.py", "output/test_compared_outputs.py", "output/test_comparison_shown.py",
    ),  # fmt: skip
    "conformance": (
        "chapters/test_11_backends.py", "conformance/test_matrix.py", "conformance/test_by_hand.py",
        "conformance/test_odd_answers.py", "conformance/test_smaller_calls.py", "conformance/test_recorded_names.py",
        "conformance/test_drawn_alike.py", "conformance/test_examinations_told.py",
        "conformance/test_clauses_undecided.py", "conformance/test_ends_asked.py", "conformance/test_examined.py",
        "conformance/test_shape_words.py",
    ),  # fmt: skip
    "engines": tuple(
        f"engines/test_{name}.py"
        for name in (
            "kernel_shapes", "known_steps", "passes", "plans", "places", "shares", "shares_of_frames", "dense_parts",
            "orders", "lowering", "tensors", "turned", "sums", "means", "tiles", "weight_only", "embedding", "autotune",
            "torch_matmul", "seldom_shapes", "parallel", "bags_refused", "state_given", "normalization", "nan_refused",
            "inputs_named",
        )
    ) + RUNNING
    + ("chapters/test_05_static_nan.py", "chapters/test_06_dynamic.py", "chapters/test_06_dynamic_attention.py"),
    "ir": (
        "chapters/test_05_static.py", "chapters/test_05_static_networks.py", "capture/test_forms.py",
        "capture/test_trees.py", "capture/test_moves.py", "capture/test_run_in_float.py", "capture/test_heads.py",
        "capture/test_masks_given.py",
    ),  # fmt: skip
    "kernels": (
        "kernels/test_arrays.py", "kernels/test_cells.py", "kernels/test_codes_copied.py", "kernels/test_emitter.py",
        "kernels/test_jit.py", "kernels/test_minmax.py", "kernels/test_packed.py", "kernels/test_records.py",
        "kernels/test_training_kernels.py",
        *(
            f"engines/test_{name}.py"
            for name in (
                "kernel_shapes", "seldom_shapes", "dense_parts", "embedding", "means", "turned", "sums", "magnitudes",
                "weight_only", "shares_of_frames", "threads", "team", "tiles",
            )
        ), *RUNNING, "chapters/test_06_dynamic_attention.py",
    ),  # fmt: skip
    "module": (
        "chapters/test_05_static.py", "chapters/test_08_size.py", "capture/test_capture.py", "output/test_tables.py",
        "output/test_networks_shown.py", "capture/test_files.py", "capture/test_modes.py", "capture/test_first_call.py",
        *STORING[:3], "files/test_held_as_codes.py",
    ),  # fmt: skip
    "numerics": (
        "chapters/test_10_dialects.py", "chapters/test_10_dialects_codes.py", "chapters/test_09_accuracy.py",
        "chapters/test_03_integer_windows.py", "chapters/test_06_dynamic_attention.py", "chapters/test_06_dynamic.py",
        "engines/test_weights_in_parts.py", "engines/test_dialects_used.py", "engines/test_numbers_at_ends.py",
    ),  # fmt: skip
    "onnx_export": tuple(
        f"files/test_onnx_{name}.py"
        for name in (
            "export", "codes", "floats", "shapes", "builder", "moves", "layers", "resized", "steps", "attention",
            "calls", "model",
        )
    ),  # fmt: skip
    "ptq": (
        "chapters/test_05_static.py", "chapters/test_05_static_networks.py", *QUANTIZING, "capture/test_forms.py",
        "capture/test_attention_found.py", "capture/test_attention_by_letters.py", "capture/test_steps_made.py",
        "capture/test_placed.py", "capture/test_work_counted.py", "chapters/test_06_dynamic_attention.py",
    ),  # fmt: skip
    "qat": (*(f"chapters/test_07_qat{of}.py" for of in ("", *OF_QAT)), "files/test_training_kept.py"),
    "storage": STORING,
}
# Decorators that mutmut would leave a function out for, and that may as well be called below it.
CALLED = ("usual", "near_names", "contextmanager", "cache")
# Their functions run while the package is imported, which it is before mutmut chooses a mutant: all of a module's, or
# some, which make others that are called later.
AT_IMPORT = ("qat.eager",)
SOME_AT_IMPORT = {
    "capture.operators": ("signature", "function"),
    "capture.tracked": ("arithmetic", "comparison", "single", "of_number"),
    "conformance.draw_special": ("everything",),
}
# The second is what ended the tests' process by a signal, which no run of the suite survives.
KILLED = "killed", "segfault"
PAUSE = 20  # seconds between two looks at how far mutmut is
LEAST = 95  # percent of all mutants, the equivalent ones among them
# A name that no mutant has: mutmut mutates, runs the tests for its statistics, and then finds nothing to try.
NO_MUTANT = "none"

# mutmut reads setup.cfg, names mutants by paths below src/, and times a mutant out at five times what its tests took
# before and ``added``; the time that pytest gives one test is too short for some with what mutmut puts around each
# function. That is a caller that is not of the package, so that the tests of whose line a warning names are left out.
SETTINGS = """\
[mutmut]
source_paths = src
only_mutate =
    {paths}
also_copy =
    spec
    conftest.py
pytest_add_cli_args =
    -p
    no:xdist
    -p
    no:cacheprovider
    -o
    timeout=0
    --deselect
    tests/chapters/test_08_work.py::test_below_nine_tenths_quantizing_warns_once
    --deselect
    tests/chapters/test_08_work.py::test_code_of_no_module_is_warned_as_well
    --deselect
    tests/chapters/test_07_qat_networks.py::test_parameters_that_the_first_batch_adds_are_warned_of_in_the_users_line
    --deselect
    tests/chapters/test_07_qat_computed.py::test_what_cannot_be_repeated_is_warned_of_in_the_users_line
    --deselect
    tests/chapters/test_07_qat_computed.py::test_a_hook_is_warned_of_in_the_users_line
pytest_add_cli_args_test_selection =
    {tests}
timeout_multiplier = 5.0
timeout_constant = {added}
track_dependencies = false
use_git_change_detection = false
"""
# Tests that fail where a module's functions have a caller of mutmut's, or those of any module of a room, unchanged as
# they are: a recording looks for the frame that it began in, a warning for the user's line, and checks are taken out of
# functions by the lines where they stand in a module, in which all of its mutants stand too. Those of kernels pass, but
# compile them all for minutes in processes that have the package without mutants, or measure a machine that is busy.
LEFT_OUT = {
    "capture": ("capture/test_whole_graphs.py::test_a_graph_is_this_one[sizes]",),
    "capture.recorder": (
        "capture/test_capture.py::test_a_loaded_network_says_for_which_sizes_it_was_captured",
        "capture/test_split.py::test_a_loaded_network_says_for_which_sizes_it_has_a_part_that_there_is_not",
    ),
    "engines": ("chapters/test_05_static_nan.py::test_one_row_of_a_thousand_is_nan_and_a_warning_names_the_line",),
    "kernels": (
        "kernels/test_jit.py::test_other_cpus_give_the_same_bits",
        "kernels/test_jit.py::test_stored_kernels_that_are_torn_are_compiled_again",
        "engines/test_compiled.py::test_the_peak_is_above_what_a_product_reaches",
    ),
    "storage": ("files/test_checks.py::test_with_a_check_taken_out_a_forged_file_is_answered_in_another_way",),
}
# In front of the copy of conftest.py: what mutmut puts around each function counts as a file of the package, for the
# tests of which line of the user's a message names.
AS_OURS = """\
import types

from mutmut.mutation import trampoline


def as_ours(code):
    inner = tuple(as_ours(each) if isinstance(each, types.CodeType) else each for each in code.co_consts)
    return code.replace(co_filename="/quantspec/mutmut.py", co_consts=inner)


trampoline.wrap_in_trampoline.__code__ = as_ours(trampoline.wrap_in_trampoline.__code__)
"""
# Behind it. A mutant runs in a process that is forked off one in which tests ran, must not find in a cache what the
# function gave there, and is tried on the tests that called the function, not on the one that happened to call it
# first. Threads may be started in it, as none were before the fork.
EMPTYING = """

def pytest_runtest_setup():
    for each in __import__("builtins").__dict__.get("caches", []):
        each.cache_clear()
    if threads := __import__("sys").modules.get("quantspec.kernels.threads"):
        threads.pool.forked = False
"""
# Behind that too. That all tests pass without a mutant was shown when they ran for mutmut's statistics. To show it
# again before the first mutant costs as much, more than a sample may; and mutants are forked off the process that does
# it, so that tests of several threads would have them wait for threads that a fork does not have. The quickest of all
# is enough there.
QUICKEST = """

def pytest_collection_modifyitems(config, items):
    if __import__("os").environ.get("MUTANT_UNDER_TEST") != "":
        return
    took = __import__("mutmut.state", fromlist=["state"]).state().duration_by_test
    _, *others = sorted(items, key=lambda item: took.get(item.nodeid, 0))
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]
"""
# Behind that where kernels are mutated: a machine, which stays, takes its code as ``machine_code`` says, and stores it
# in a folder of its own. pytest runs a conftest.py each time that mutmut calls it; the class is the same.
COMPILING = """

from mutants import machine_code
from quantspec.kernels import jit

if not hasattr(jit.Machine, "compiling"):
    state = __import__("mutmut.state", fromlist=["state"]).state
    folder = ROOT.parent / "kernels"
    folder.mkdir(mode=0o700, exist_ok=True)
    os.environ["QUANTSPEC_KERNELS"] = str(folder)
    jit.Machine.compiling = machine_code.Compiling(folder / "parts.json", lambda: state()._stats)
    jit.Machine.compiling.put_in(jit.Machine)
    __import__("builtins").caches.remove(jit.machine)
"""
# Behind that too: what ``noted`` says.
NOTED = """

from quantspec.noted import pytest_fixture_setup, pytest_runtest_setup_noted, pytest_runtest_teardown
from quantspec.noted import pytest_sessionstart
"""
# Seconds that a mutant may take besides five times what its tests did, and as often: kernels are compiled, and
# processes started, which other tests had done for them.
ADDED = {"kernels": 20.0, "backends": 20.0, "conformance": 20.0}
OTHERWISE_ADDED = 5.0
# One thread per process, as several run at once and forking a process with threads is not safe.
ENVIRONMENT = {
    "HYPOTHESIS_PROFILE": "faults",
    "QUANTSPEC_SUBSET": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTEST_ADDOPTS": "",  # no options of another run
    "PYTHONUTF8": "1",  # mutmut's names are not ASCII
}


def tests_of(part: str) -> tuple[str, ...]:
    """The tests that a module or a room is tried on: those of its chapter, or else of the room."""
    return TESTS.get(part) or ROOMS[part.partition(".")[0]]


def settings_of(part: str) -> str:
    """The settings of mutmut for a module, or for all modules of a room at once."""
    paths = "\n    ".join(f"src/quantspec/{path_of(module)}" for module in modules_of(part))
    tests = "\n    ".join(f"tests/{name}" for name in tests_of(part))
    text = SETTINGS.format(paths=paths, tests=tests, added=ADDED.get(part.partition(".")[0], OTHERWISE_ADDED))
    left_out = "".join(f"    --deselect\n    tests/{test}\n" for test in left_out_of(part))
    return text.replace("pytest_add_cli_args_test_selection", f"{left_out}pytest_add_cli_args_test_selection")


def has_kernels(part: str) -> bool:
    """Whether a part is the room of kernels, or a module of it."""
    return part.partition(".")[0] == "kernels"


def left_out_of(part: str) -> list[str]:
    """The tests that fail where a part is mutated: those of it, of its room, and of the modules of a room."""
    within = f"{part}."
    names = [name for name in LEFT_OUT if f"{name}.".startswith(within) or within.startswith(f"{name}.")]
    return [test for name in names for test in LEFT_OUT[name]]


def path_of(module: str) -> str:
    """The file of a module within the package."""
    return f"{module.replace('.', '/')}.py"


def modules_of(part: str) -> list[str]:
    """The modules of a room that no chapter has, or the one of that name. Raises ValueError where there is none."""
    package = ROOT / "impl" / "quantspec"
    place = package / part.replace(".", "/")
    if part in ROOMS and place.is_dir():
        paths = sorted(path for path in place.rglob("*.py") if path.name != "__init__.py")
        names = [".".join(path.relative_to(package).with_suffix("").parts) for path in paths]
        return [name for name in names if name not in (*TESTS, *AT_IMPORT)]
    if (part in TESTS or part.partition(".")[0] in ROOMS) and place.with_suffix(".py").exists():
        return [part]
    raise ValueError(f"module: expected one of {', '.join([*TESTS, *ROOMS])} or a module of these, got {part!r}")


@dataclass(frozen=True)
class Change:
    """What a mutant changes: the lines of a function before and after, without indentation."""

    module: str
    function: str
    before: str
    after: str


@dataclass(frozen=True)
class Mutant:
    """A mutant, what became of it in mutmut's words, and for one that was not killed its change."""

    module: str
    name: str
    status: str
    change: Change | None = None


@dataclass(frozen=True)
class Verdict:
    """Mutants judged against the list of equivalent ones."""

    killed: list[Mutant]
    timed_out: list[Mutant]
    equivalent: list[Mutant]
    unexplained: list[Mutant]
    stale: list[Change]

    @property
    def total(self) -> int:
        """How many mutants there are."""
        return len(self.killed) + len(self.timed_out) + len(self.equivalent) + len(self.unexplained)

    @property
    def score(self) -> float:
        """The percentage that was killed, time-outs included."""
        return 100 * (len(self.killed) + len(self.timed_out)) / self.total if self.total else 0.0

    @property
    def passes(self) -> bool:
        """Whether every survivor is listed, every entry survives, and enough were killed."""
        return not self.unexplained and not self.stale and self.score >= LEAST

    def last_line(self) -> str:
        """The line of totals."""
        killed, unexplained = len(self.killed) + len(self.timed_out), len(self.unexplained)
        survived = f"{len(self.equivalent)} equivalent, {unexplained} unexplained"
        return f"mutants: {killed} of {self.total} killed, {survived}"


def judge(mutants: Iterable[Mutant], reasons: dict[Change, str]) -> Verdict:
    """Sorts the mutants.

    Only what mutmut calls survived can be equivalent: what was not run at all shows nothing. A listed one that only
    takes longer is timed out on a busy machine, and still listed.
    """
    verdict = Verdict([], [], [], [], [])
    left = dict(reasons)
    for mutant in mutants:
        if mutant.status in KILLED:
            verdict.killed.append(mutant)
        elif mutant.status in ("survived", "timeout") and left.pop(mutant.change, None):
            verdict.equivalent.append(mutant)
        elif mutant.status == "timeout":
            verdict.timed_out.append(mutant)
        else:
            verdict.unexplained.append(mutant)
    verdict.stale.extend(left)
    return verdict


def read_equivalents(text: str) -> dict[Change, str]:
    """The reason for each change in the list.

    Raises ValueError for an entry that lacks something, names no module, or stands twice.
    """
    reasons: dict[Change, str] = {}
    for entry in tomllib.loads(text).get("equivalent", []):
        if entry.keys() != {"module", "function", "before", "after", "reason"} or not entry["reason"].strip():
            raise ValueError(f"equivalent: expected module, function, before, after and reason, got {entry}")
        if entry["module"].partition(".")[0] not in ROOMS:
            raise ValueError(f"equivalent: expected a module of {', '.join(ROOMS)}, got {entry['module']!r}")
        # Several changes of one line may have one reason.
        before, afters = without_indentation(entry["before"]), entry["after"]
        for after in [afters] if isinstance(afters, str) else afters:
            change = Change(entry["module"], entry["function"], before, without_indentation(after))
            if change in reasons:
                raise ValueError(f"equivalent: stands twice: {change}")
            reasons[change] = entry["reason"].strip()
    return reasons


def without_indentation(text: str) -> str:
    """Lines without the blanks at their ends."""
    return "\n".join(line.strip() for line in text.strip().splitlines())


def read_results(text: str) -> list[Mutant]:
    """The mutants in the output of ``mutmut results --all``."""
    found = re.findall(r"^\s+quantspec\.([\w.]+)\.(\S+): (.+)$", text, re.MULTILINE)
    return [Mutant(module, f"quantspec.{module}.{name}", status) for module, name, status in found]


def with_signals(mutants: list[Mutant], text: str) -> list[Mutant]:
    """The mutants, with what ended the tests' process by any signal, as what mutmut keeps of a module (``text``) says:
    of two signals it says so itself, all others are suspicious to it.
    """
    codes = json.loads(text)["exit_code_by_key"]
    return [
        replace(mutant, status="segfault")
        if mutant.status == "suspicious" and codes.get(mutant.name, 0) < 0
        else mutant
        for mutant in mutants
    ]


def read_change(mutant: Mutant, text: str) -> Change:
    """The change of a mutant, from the output of ``mutmut show``: its status and a unified diff."""
    mangled = mutant.name.rpartition("__mutmut_")[0].rpartition(".")[2]  # x_function, or xǁClassǁmethod
    function = mangled.removeprefix("x").removeprefix("_").strip("ǁ").replace("ǁ", ".")
    diff = text[text.index("\n@@ ") :].splitlines()
    sides = ("\n".join(line[1:] for line in diff if line.startswith(sign)) for sign in "-+")
    return Change(mutant.module, function, *(without_indentation(side) for side in sides))


def state(part: str) -> str:
    """A digest of a module, or of those of a room, and of the tests that it is tried on."""
    paths = [ROOT / "impl" / "quantspec" / path_of(module) for module in modules_of(part)]
    paths += [ROOT / "tests" / name for name in tests_of(part)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths) + settings_of(part).encode()).hexdigest()


def outcome(module: str, workers: int, *, anew: bool) -> list[Mutant]:
    """What became of a module's mutants: of an earlier run where nothing has changed since, and unless ``anew``."""
    kept, now = WORK / f"{module}.json", state(module)
    if kept.exists() and not anew and (earlier := json.loads(kept.read_text(encoding="utf-8")))["state"] == now:
        return [read_mutant(entry) for entry in earlier["mutants"]]
    mutants = attack(module, workers)
    kept.write_text(json.dumps({"state": now, "mutants": [asdict(mutant) for mutant in mutants]}), encoding="utf-8")
    return mutants


def functions(source: str) -> dict[str, str]:
    """The functions and methods of a module, ``name`` or ``Class.name``, with their code but for its comments."""
    tree = ast.parse(source)
    scopes = [("", tree), *((f"{node.name}.", node) for node in tree.body if isinstance(node, ast.ClassDef))]
    return {
        f"{prefix}{node.name}": ast.unparse(node)
        for prefix, scope in scopes
        for node in scope.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def changed_functions(before: str, after: str) -> list[str]:
    """The functions of ``after`` that ``before`` lacks or has otherwise."""
    old = functions(before)
    return [name for name, code in functions(after).items() if old.get(name) != code]


def changed_since(commit: str, module: str) -> list[str]:
    """The functions of a module that are not as they were at a commit; all of a module that is new."""
    path = f"impl/quantspec/{module.replace('.', '/')}.py"
    shown = subprocess.run(["git", "show", f"{commit}:{path}"], cwd=ROOT, capture_output=True, encoding="utf-8")
    return changed_functions("" if shown.returncode else shown.stdout, (ROOT / path).read_text(encoding="utf-8"))


def check_commit(commit: str) -> None:
    """Raises ValueError for what is no commit here."""
    command = ["git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"]
    if subprocess.run(command, cwd=ROOT, capture_output=True).returncode:
        raise ValueError(f"since: expected a commit of this repository, got {commit!r}")


def pattern(module: str, function: str) -> str:
    """mutmut's names of the mutants of a function."""
    owner, _, name = function.rpartition(".")
    return f"quantspec.{module}.{f'xǁ{owner}ǁ' if owner else 'x_'}{name}__mutmut_*"


def read_mutant(entry: dict) -> Mutant:
    """A mutant that was kept."""
    change = entry["change"]
    return Mutant(entry["module"], entry["name"], entry["status"], None if change is None else Change(**change))


def attack(module: str, workers: int, names: Iterable[str] = ()) -> list[Mutant]:
    """The mutants of one module, or of the functions ``names`` of it, tried on its tests."""
    patterns = [pattern(module, name) for name in names]
    folder = WORK / module
    prepare(folder, module)
    print(f"mutating {module}.py ...", flush=True)
    run_mutmut(folder, workers, [NO_MUTANT])
    run_mutmut(folder, workers, patterns)
    mutants = results(folder, [module])
    if patterns:
        mutants = [mutant for mutant in mutants if any(fnmatch.fnmatch(mutant.name, each) for each in patterns)]
    return with_changes(folder, mutants)


def prepare(folder: Path, part: str) -> None:
    """Makes the folder in which a part is attacked, where the package is ``src/quantspec``."""
    shutil.rmtree(folder, ignore_errors=True)
    unneeded = shutil.ignore_patterns("__pycache__")
    for source, target in (("impl/quantspec", "src/quantspec"), ("tests", "tests"), ("spec", "spec")):
        shutil.copytree(ROOT / source, folder / target, ignore=unneeded)
    shutil.copy(ROOT / "pyproject.toml", folder)
    own = (ROOT / "conftest.py").read_text(encoding="utf-8")
    compiling = COMPILING if has_kernels(part) else ""
    (folder / "conftest.py").write_text(AS_OURS + own + EMPTYING + QUICKEST + compiling + NOTED, encoding="utf-8")
    package = folder / "src" / "quantspec"
    shutil.copy(Path(__file__).with_name("noted.py"), package)
    with (package / "__init__.py").open("a", encoding="utf-8") as file:
        file.write("\nfrom . import noted as noted\n")
    for module in modules_of(part):
        attacked = package / path_of(module)
        source = with_decorators_called(attacked.read_text(encoding="utf-8"))
        attacked.write_text(left_alone(source, SOME_AT_IMPORT.get(module, ())), encoding="utf-8")
    (folder / "setup.cfg").write_text(settings_of(part), encoding="utf-8")
    mutated_of(folder).mkdir(parents=True)  # as Python does not look again where there was no folder when it began


def results(folder: Path, modules: Iterable[str]) -> list[Mutant]:
    """What has become of the mutants in a folder so far."""
    mutants = read_results(mutmut(folder, "results", "--all", "true"))
    for module in modules:
        mutants = with_signals(mutants, kept_of(folder, module))
    return mutants


def kept_of(folder: Path, module: str) -> str:
    """What mutmut keeps of a module."""
    return (mutated_of(folder) / "quantspec" / f"{path_of(module)}.meta").read_text(encoding="utf-8")


def with_changes(folder: Path, mutants: Iterable[Mutant]) -> list[Mutant]:
    """The mutants, and what those change that were not killed."""
    return [mutant if mutant.status in KILLED else with_change(folder, mutant) for mutant in mutants]


def with_change(folder: Path, mutant: Mutant) -> Mutant:
    """The mutant and what it changes."""
    return replace(mutant, change=read_change(mutant, mutmut(folder, "show", mutant.name)))


def left_alone(source: str, names: Iterable[str]) -> str:
    """A module in which functions have a decorator that does nothing, for which mutmut leaves them alone."""
    for name in names:
        source, count = re.subn(rf"(?m)^def {name}\b", f"@(lambda function: function)\ndef {name}", source)
        if count != 1:
            raise ValueError(f"expected one function {name!r}, found {count}")
    return source


def with_decorators_called(source: str) -> str:
    """A module in which functions with decorators of ``CALLED`` alone are defined without, and decorated below.

    What has a cache is noted for ``EMPTYING``.
    """
    lines = source.splitlines()
    decorated = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.decorator_list
        and all(ast.unparse(each).rpartition(".")[2] in CALLED for each in node.decorator_list)
    ]  # fmt: skip
    for node in sorted(decorated, key=lambda node: -node.lineno):
        calls = node.name
        for decorator in reversed(node.decorator_list):
            calls = f"{ast.unparse(decorator)}({calls})"
        below = " " * node.col_offset + f"{node.name} = {calls}"
        if "cache(" in calls:
            below += f"; __import__('builtins').__dict__.setdefault('caches', []).append({node.name})"
        lines.insert(node.end_lineno, below)
        del lines[node.decorator_list[0].lineno - 1 : node.lineno - 1]
    return "\n".join(lines) + "\n"


def run_mutmut(folder: Path, workers: int, patterns: Iterable[str], watch: Callable[[], None] | None = None) -> None:
    """The run itself, of all mutants or of those that the patterns name.

    On a terminal mutmut shows the progress of a run of all; else its output is kept for the case that it fails, and
    ``watch`` is called now and then. Patterns of which no mutant has a name, such as those of properties, are no
    failure.
    """
    log = folder / "mutmut.log"
    with log.open("w", encoding="utf-8") as file:
        output = None if sys.stdout.isatty() and not patterns else file
        command = [executable(), "run", "--max-children", str(workers), *patterns]
        options = {"cwd": folder, "env": environment(folder), "stdout": output, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, **options) as process:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=PAUSE)
                if watch:
                    watch()
    said = log.read_text(encoding="utf-8")
    if process.returncode and "but nothing matches" not in said:
        raise SystemExit(f"{said[-4000:]}\nmutmut failed in {folder}")


def mutmut(folder: Path, *arguments: str) -> str:
    """What mutmut prints."""
    options = {"cwd": folder, "env": environment(folder), "check": True, "capture_output": True, "encoding": "utf-8"}
    return subprocess.run([executable(), *arguments], **options).stdout


def environment(folder: Path) -> dict[str, str]:
    """What mutmut runs in. Processes that tests start have the mutated package, too; but kernels that a mutant writes
    would be stored there as those of none."""
    return os.environ | ENVIRONMENT | {"PYTHONPATH": "" if has_kernels(folder.name) else str(mutated_of(folder))}


def mutated_of(folder: Path) -> Path:
    """Where mutmut puts the mutated package."""
    return folder / "mutants" / "src"


def executable() -> str:
    """mutmut, beside the interpreter that runs this."""
    return str(Path(sys.executable).with_name("mutmut"))


def table(verdict: Verdict, modules: Iterable[str]) -> Table:
    """How each module fared."""
    shown = Table(title="mutants", title_justify="left")
    shown.add_column("module")
    for column in ("all", "killed", "timed out", "equivalent", "unexplained", "score"):
        shown.add_column(column, justify="right")
    groups = (verdict.killed, verdict.timed_out, verdict.equivalent, verdict.unexplained)
    rows = [(module, [sum(m.module == module for m in group) for group in groups]) for module in modules]
    for module, counts in [*rows, ("all", [len(group) for group in groups])]:
        score = 100 * sum(counts[:2]) / sum(counts) if sum(counts) else 0.0
        shown.add_row(module, str(sum(counts)), *(str(count) for count in counts), f"{score:.1f} %")
    return shown


def account(verdict: Verdict, reasons: dict[Change, str]) -> list[str]:
    """The survivors with what they change and why they may, then what has to be done."""
    lines = []
    for mutant in verdict.equivalent:
        lines += [*described(mutant.change), f"    equivalent: {' '.join(reasons[mutant.change].split())}", ""]
    for mutant in verdict.unexplained:
        advice = f"test what it changes, or simplify the code, or list it in {EQUIVALENT.name}"
        lines += [*described(mutant.change), f"    UNEXPLAINED ({mutant.status}): {advice}", ""]
    for change in verdict.stale:
        advice = f"no mutant that survives makes this change; take it out of {EQUIVALENT.name}"
        lines += [*described(change), f"    STALE: {advice}", ""]
    if verdict.score < LEAST:
        lines.append(f"The score is {verdict.score:.1f} %, less than {LEAST} %.")
    return lines


def described(change: Change) -> list[str]:
    """A change as lines of a diff, under the name of its function."""
    before = [f"    - {line}" for line in change.before.splitlines()]
    after = [f"    + {line}" for line in change.after.splitlines()]
    return [f"{change.module}.{change.function}", *before, *after]


if __name__ == "__main__":
    raise SystemExit("the command is `make mutants`, or `PYTHONPATH=tests python -m mutants`")
