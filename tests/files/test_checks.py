"""Every check of the loader has a forged file that is refused by it: with the check taken out, the answer is another.

Taken out are, one at a time: each ``raise``, each alternative of the condition that leads to it, each call of a
function that only checks, and each question whether a value is of the type that is expected.
"""

import ast
import copy
import importlib
import inspect
import re
import traceback
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from every_step import parts
from forged import GIVEN, MODEL, NETWORK, RAW, changed, forged
from stored import written
from test_model_storage import FORGERIES, blocks, whole
from test_model_storage import forged as forged_model
from torch import nn

import quantspec
from evidence import clause
from quantspec.storage.file import packed

MODULES = (
    "storage.arrays", "storage.file", "storage.json_fields", "storage.callables", "storage.allowed", "storage.validate",
    "storage.model", "storage.limits", "module.load",
)  # fmt: skip
# What a file cannot reach, and why.
UNREACHED = {
    "save write_whole remove_drafts runs write_module write_callables written written_model Writer.array Writer.grid "
    "Writer.field Writer.tree write_way write_constant": "they write",
}


def skipped(function: str) -> bool:
    return any(function in names.split() for names in UNREACHED)


@dataclass(frozen=True)
class Check:
    """A check: where it stands, and the code of its function without it."""

    module: str
    function: str
    lines: range
    what: str
    code: types.CodeType

    def __str__(self) -> str:
        return f"{self.module}.{self.function}:{self.what}"


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(inner, ast.FunctionDef):
                yield f"{node.name}.{inner.name}", inner


def checks(called: ast.expr) -> bool:
    """Whether a function whose result nobody takes checks something."""
    return isinstance(called, ast.Name) or (isinstance(called, ast.Attribute) and called.attr == "check")


def without(node: ast.FunctionDef) -> Iterator[tuple[range, str, ast.AST, ast.AST]]:
    """(lines, name, what is taken out, what comes in its place)."""
    for inner in ast.walk(node):
        lines = range(inner.lineno, inner.end_lineno + 1) if hasattr(inner, "lineno") else range(0)
        if isinstance(inner, ast.Raise):
            yield lines, ast.unparse(inner), inner, ast.Pass()
        elif isinstance(inner, ast.If) and any(isinstance(child, ast.Raise) for child in inner.body):
            raised = range(inner.body[0].lineno, inner.end_lineno + 1)
            if isinstance(inner.test, ast.BoolOp) and isinstance(inner.test.op, ast.Or):
                for part in inner.test.values:
                    yield raised, ast.unparse(part), part, ast.Constant(False)
        elif isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Call) and checks(inner.value.func):
            yield lines, ast.unparse(inner), inner, ast.Pass()
        elif isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id == "expect":
            yield lines, ast.unparse(inner), inner, inner.args[0]


class Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return ast.copy_location(self.new, node) if node is self.old else self.generic_visit(node)


def all_checks(module: str) -> Iterator[Check]:
    path = importlib.import_module(f"quantspec.{module}").__file__
    for name, node in functions(ast.parse(Path(path).read_text(encoding="utf-8"))):
        for index, (lines, what, _, _) in enumerate(() if skipped(name) else without(node)):
            twin = copy.deepcopy(node)  # its own, as it is changed
            _, _, old, new = list(without(twin))[index]
            alone = ast.fix_missing_locations(ast.Module([Replace(old, new).visit(twin)], []))
            code = next(c for c in compile(alone, path, "exec").co_consts if isinstance(c, types.CodeType))
            yield Check(module, name, lines, what, code)


def function_of(check: Check) -> types.FunctionType:
    owner = importlib.import_module(f"quantspec.{check.module}")
    for name in check.function.split("."):
        owner = vars(owner)[name]
    return inspect.unwrap(owner.fget if isinstance(owner, property) else owner)


@dataclass(frozen=True)
class File:
    name: str
    data: bytes
    options: dict[str, Any] = field(default_factory=dict)

    def answer(self, path) -> tuple[str, set[tuple[str, int]]]:
        """What loading it says, and the lines that had a part in it."""
        written(path, self.data)
        try:
            quantspec.load(**({"path": path} | self.options))
        except Exception as error:
            frames, said = set(), f"{type(error).__name__}: {error}"
            while error is not None:
                frames |= {(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)}
                error = error.__cause__
            return said, frames
        return "loaded", set()


class Tied(nn.Module):
    """Two parameters, or one under two names, around Python that decides by data."""

    def __init__(self, tied: bool):
        super().__init__()
        self.layer, self.first = nn.Linear(4, 4), nn.Parameter(torch.ones(4))
        self.second = self.first if tied else nn.Parameter(torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return y * self.first + self.second if y.sum() > -1e9 else y


class InBytes:
    """A path that is given in bytes."""

    def __fspath__(self) -> bytes:
        return b"nothing is there"


def all_files() -> list[File]:
    model, (q, *_) = blocks()
    data, whole_model = packed(q.stored(), q.report.as_tuples()), {"model": model}
    given = changed(*parts(), [GIVEN])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        untied = quantspec.quantize(Tied(False).eval(), [torch.ones(2, 4)])
    files = [File(name, forged(name)) for name in NETWORK]
    files += [File(name, content) for name, (content, _) in RAW.items()]
    files += [File(name, forged_model(q, change), whole_model) for name, (change, _) in FORGERIES.items()]
    files += [File(name, changed(*whole(data), changes), whole_model) for name, (changes, _) in MODEL.items()]
    files += [File(f"given {what!r}", given, {"modules": {"soft": what}}) for what in (3, nn.LayerNorm(3))]
    for key, value in (("model", 3), ("max_memory", True), ("max_memory", "1"), ("max_work", -1), ("max_work", 5.0)):
        files.append(File(f"{key}={value!r}", changed(*parts(), []), {key: value}))
    odd = {"path": 3}, {"path": InBytes()}, {"path": "a\0b"}, {"modules": 3}
    files += [File(str(options), changed(*parts(), []), options) for options in odd]
    files.append(File("tied", packed(untied.stored(), untied.report.as_tuples()), {"model": Tied(True).eval()}))
    return [*files, File("no model", data)]


SPARE = {
    "tensor {name!r} is cut off": "only a file that another process shortens meanwhile",
    "not abs(number) < 2.0 ** 128": "spares a warning of NumPy's",
    "import_torchvision()": "says which extra is missing",
    "this installation has no function": "only an older torch",
    "expected tensors on the CPU": "of the model that is given beside a file",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    path = tmp_path_factory.mktemp("checks") / "q.safetensors"
    return path, [(one, *one.answer(path)) for one in all_files()]


@clause("STA-FORMAT")
@pytest.mark.parametrize("name", [*NETWORK, *RAW, *MODEL])
def test_each_forged_file_is_refused_for_its_own_reason(name, answers):
    messages = {name: message for name, (_, message) in [*NETWORK.items(), *RAW.items(), *MODEL.items()]}
    path, files = answers
    said = [one.answer(path)[0] for one, *_ in files if one.name == name]  # a fixture may be another test's
    assert any(re.search(messages[name], text) for text in said), said
    assert all(text.startswith(("FormatError: ", "NotGiven: mod", "ValueError: model")) for text in said)


@clause("STA-FORMAT")
@pytest.mark.parametrize("module", MODULES)
def test_with_a_check_taken_out_a_forged_file_is_answered_in_another_way(module, answers):
    path, files = answers
    missed = []
    for check in all_checks(module):
        function = function_of(check)
        lines = {(function.__code__.co_filename, line) for line in check.lines}
        mine = [(one, said) for one, said, frames in files if frames & lines]
        whole_code, function.__code__ = function.__code__, check.code
        try:
            # Where no line of a file's refusal is the check's own, any of them may be let through.
            same = all(one.answer(path)[0] == said for one, said in mine or [(one, said) for one, said, _ in files])
        finally:
            function.__code__ = whole_code
        if same and not any(spare in check.what for spare in SPARE):
            missed.append(str(check))
    assert missed == []


def test_the_forged_network_is_well_formed_before_it_is_changed(tmp_path):
    (tmp_path / "q").write_bytes(changed(*parts(), []))
    y = quantspec.load(tmp_path / "q")(torch.rand(2, 3, 8, 8), torch.tensor([[1, 2], [3, 4]]))
    assert [len(value) for value in (y[0], *y[1:])] == [2, 2, 2, 2, 2]
