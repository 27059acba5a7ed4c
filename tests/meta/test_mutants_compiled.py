"""Kernels under mutants, on a made-up machine: what a mutant writes is compiled for it alone, all else is stored."""

import pytest

from mutants.machine_code import Compiling, called, written_in

WIDTH, WRITE = "quantspec.kernels.made_up.x_width", "quantspec.kernels.made_up.x_write"
SOURCE = """
def x_width__mutmut_orig():
    return 4

def x_write__mutmut_orig(more):
    def body():
        return x_width__mutmut_orig() + more
    return body

class Writer:
    def xǁWriterǁline__mutmut_3(self):
        return 1
"""


@pytest.fixture
def made_up():
    """The names of a module of the package that mutmut has changed."""
    names = {"__name__": "quantspec.kernels.made_up"}
    exec(SOURCE, names)
    return names


class Machine:
    """Keeps kernels, and has them from a store that all have in common, as the package's does."""

    emitter = str
    stored = {}

    def __init__(self):
        self.addresses = {}

    def function_address(self, name, write):
        if name not in self.addresses:
            self.addresses[name] = self.code(name, write)
        return self.addresses[name]

    def code(self, name, write):
        if name not in self.stored:
            self.stored[name] = self.compiled(name, write)
        return self.stored[name]

    def compiled(self, name, write):
        return write()


@pytest.fixture
def process(tmp_path):
    """What makes the machine of another process, and the functions that mutmut noted in it."""
    store = {}

    def begin():
        own, hits = type("Own", (Machine,), {"stored": store}), set()
        Compiling(tmp_path / "parts.json", lambda: hits).put_in(own)
        return own(), hits

    return begin


def test_a_function_is_named_as_its_mutants_are_also_by_what_stands_in_it(made_up):
    body = made_up["x_write__mutmut_orig"](1)
    assert written_in("quantspec.kernels.made_up", body.__code__) == WRITE
    method = made_up["Writer"].xǁWriterǁline__mutmut_3
    assert written_in("quantspec.kernels.made_up", method.__code__) == "quantspec.kernels.made_up.xǁWriterǁline"


def test_what_is_called_is_noted_and_nothing_after_it(made_up):
    body, functions = made_up["x_write__mutmut_orig"](1), set()
    with called(functions):
        body()
    made_up["Writer"]().xǁWriterǁline__mutmut_3()
    assert functions == {WRITE, WIDTH}


def test_each_test_that_asks_for_a_kernel_counts_as_calling_what_wrote_it(made_up, process, monkeypatch):
    monkeypatch.setenv("MUTANT_UNDER_TEST", "stats")
    machine, hits = process()
    for _ in range(2):
        hits.clear()
        assert machine.function_address("sum", made_up["x_write__mutmut_orig"](3)) == 7
        assert hits == {WRITE, WIDTH}


def test_a_mutants_kernel_is_compiled_anew_and_no_other_gets_it(made_up, process, monkeypatch):
    monkeypatch.setenv("MUTANT_UNDER_TEST", "stats")
    machine, _ = process()
    assert machine.function_address("sum", made_up["x_write__mutmut_orig"](3)) == 7
    assert machine.function_address("other", lambda: 1) == 1
    monkeypatch.setenv("MUTANT_UNDER_TEST", "")
    machine, _ = process()
    assert machine.function_address("sum", lambda: 0) == 7
    # Processes of mutants are forked off that one, which has its kernels already.
    for number in (1, 2):
        monkeypatch.setenv("MUTANT_UNDER_TEST", f"{WIDTH}__mutmut_{number}")
        for _ in range(2):
            assert machine.function_address("sum", lambda number=number: 7 + number) == 7 + number
            assert machine.function_address("other", lambda: 2) == 1
    for unchanged in ("", "fail", "quantspec.kernels.made_up.x_elsewhere__mutmut_1"):
        monkeypatch.setenv("MUTANT_UNDER_TEST", unchanged)
        assert process()[0].function_address("sum", lambda: 9) == 7


def test_a_kernel_that_only_a_mutant_has_is_stored_for_nobody(process, monkeypatch):
    monkeypatch.setenv("MUTANT_UNDER_TEST", f"{WIDTH}__mutmut_1")
    assert process()[0].function_address("new", lambda: 1) == 1
    monkeypatch.setenv("MUTANT_UNDER_TEST", "")
    assert process()[0].function_address("new", lambda: 2) == 2
