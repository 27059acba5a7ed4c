"""A pytest plugin: which clauses each test checks, what happened, and what is missing.

Every report carries its test's clauses, evidence and result to the process that started the run, which knows the whole when the run is over.
"""

import functools

import pytest

import evidence
from quantspec import chapters


def pytest_configure(config):
    config.addinivalue_line("markers", "clause(*ids): the clauses of the specification that a test checks")


def clause_ids(item) -> tuple[str, ...]:
    """The ids that a test names, in order."""
    return tuple(dict.fromkeys(id_ for mark in item.iter_markers("clause") for id_ in mark.args))


def pytest_collection_modifyitems(items):
    known = chapters.clauses()
    for item in items:
        for id_ in clause_ids(item):
            if id_ not in known:
                raise pytest.UsageError(f"{item.nodeid} names the clause {id_}, which no chapter has")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    evidence.taken()
    counted = getattr(getattr(item, "obj", None), "hypothesis", None)
    if counted is None:
        examples = [0]
        result = yield
    else:
        inner, examples = counted.inner_test, [0]

        @functools.wraps(inner)
        def counting(*args, **kwargs):
            examples[0] += 1
            return inner(*args, **kwargs)

        counted.inner_test = counting
        try:
            result = yield
        finally:
            counted.inner_test = inner
    if ids := clause_ids(item):
        item.user_properties.append(("clauses", list(ids)))
        item.user_properties.append(("noted", sorted(evidence.taken())))
        item.user_properties.append(("examples", examples[0]))
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call" and report.failed and (ids := clause_ids(item)):
        known = chapters.clauses()
        report.sections.append(("clauses", "\n".join(f"{id_}: {known[id_].sentence}" for id_ in ids)))
    return report
