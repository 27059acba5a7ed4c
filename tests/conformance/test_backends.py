"""Every installed backend beside the dialects that it declares, operation by operation, on fewer calls than `make
conformance` takes."""

import itertools

import numpy as np
import pytest

import quantspec
from evidence import clause
from quantspec import chapters
from quantspec.backends import protocol, registry
from quantspec.backends.outcome import outcome
from quantspec.backends.reference import ReferenceBackend
from quantspec.backends.worker import Worker
from quantspec.conformance import checks, results, run
from quantspec.conformance.draw_bulk import GENERATORS, bulk
from quantspec.conformance.session import Session, Undecided, Violation, answer_of, parts
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.named import DIALECTS

pytestmark = pytest.mark.usefixtures("copied_workers")
KNOWN = results.read_known(chapters.directory() / "results")
PEERS = [name for name in registry.ENTRIES if not name.startswith("quantspec-")]
CLAUSES = (
    "DIA-QUANTIZE", "DIA-QPARAMS", "DIA-SYMMETRIC", "DIA-ACCUMULATE", "DIA-REQUANTIZE", "DIA-WINDOWS", "DIA-DYNAMIC",
    "DIA-ADD", "DIA-MUL", "DIA-RESCALE", "DIA-AVERAGE", "DIA-FOLD", "DIA-EITHER",
)  # fmt: skip


def started(name: str, **options) -> Worker:
    """A worker of a backend; the test is skipped, with the reason, where the backend is not installed or its peer's
    build lacks it."""
    if reason := registry.why_not_installed(name):
        pytest.skip(reason)
    try:
        return Worker(name, **options)
    except protocol.NotOffered as error:
        pytest.skip(f"{name} is not offered: {error}")


def test_a_single_example_can_be_asked_for():
    """Of the calls beyond the ordinary ones, of which half as many are drawn, it is one too."""
    check = next(check for check in checks.CHECKS if check.beyond is not None and check.clause != "BAK-DIALECT")
    with Worker("quantspec-exact") as worker:
        (finding,) = run.examine(check, Session(worker), 1)
    assert finding.outcome == "pass" and finding.examples == 2


@clause(*CLAUSES)
@pytest.mark.parametrize("name", PEERS)
def test_a_backend_speaks_the_dialect_that_it_declares(name):
    with started(name) as worker:
        assert worker.operations
        session = Session(worker)
        for operation in worker.operations:
            for call in bulk(operation, count=3):
                try:
                    checks.dialect(session, call)
                except Undecided as undecided:
                    assert str(undecided).startswith("not offered"), f"{name} {operation}: {undecided}"
                except Violation:
                    # The shape of a call that was not cut down is none that entries list.
                    cell = worker.name, results.cpu(), "BAK-DIALECT", operation
                    if not any(entry.covers(*cell, shape) for entry in KNOWN for shape in entry.shapes):
                        raise


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_our_own_backends_offer_every_operation_in_every_dialect(name):
    backend = ReferenceBackend(name)
    assert protocol.offers(backend) == protocol.OPERATIONS == tuple(GENERATORS)
    for operation in protocol.OPERATIONS:
        for call in itertools.islice(bulk(operation, count=1), 4):
            before = [np.array(a) for a in call.arguments if isinstance(a, np.ndarray)]
            answer_of(backend, call)
            after = [a for a in call.arguments if isinstance(a, np.ndarray)]
            assert all(np.array_equal(a, b) for a, b in zip(after, before))


def test_our_own_backend_gives_the_same_in_a_worker():
    here = ReferenceBackend("onnx")
    with Worker("quantspec-onnx") as there:
        for operation in protocol.OPERATIONS:
            for call in itertools.islice(bulk(operation, count=2), 6):
                both = [outcome(backend, operation, *call.arguments, **call.options) for backend in (here, there)]
                assert [result.kind for result in both] == ["value", "value"]
                ours, theirs = (np.concatenate([np.ravel(part) for part in result.value]) for result in both)
                assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("operation", protocol.OPERATIONS)
def test_cases_reach_places_where_dialects_differ(operation):
    """Else no comparison with them would say anything: every operation with a choice tells two dialects apart."""
    if operation in ("dequantize", "max_pool2d"):
        pytest.skip("no choice: all dialects agree")
    few = [ReferenceBackend(name) for name in ("exact", "onnx", "fbgemm", "xnnpack")]
    seen = [[] for _ in few]
    for call in itertools.islice(bulk(operation, count=8), 60):
        for answers, backend in zip(seen, few):
            answers.append(np.concatenate([part.ravel() for part in parts(answer_of(backend, call))]))
    assert len({np.concatenate(answers).tobytes() for answers in seen}) > 1


def test_one_process_is_one_cpu_and_another_may_be_another():
    """The same engine, told to see no VNNI, saturates: environment variables reach the worker before torch is
    loaded."""
    with started("torch-fbgemm-no-vnni") as worker:
        assert protocol.dialects(worker, "linear") == {"fbgemm-int16"}
        x, w = QParams(1, 0, 0, 255), QParams(1, 0, -128, 127)
        x_q, w_q = np.full((1, 2), 255, np.uint8), np.full((1, 2), 127, np.int8)
        codes = worker.linear(x_q, x, w_q, w, None, QParams(300, 0, 0, 255))
        assert codes.tolist() == [[109]]  # 32,767 / 300, where 64,770 / 300 is 216


def test_our_own_backend_has_the_version_of_its_source_tree():
    """Not that of an installation, which there need not be."""
    assert ReferenceBackend("onnx").version == quantspec.__version__
