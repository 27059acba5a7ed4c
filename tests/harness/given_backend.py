"""A pytest plugin: ``pytest --backend NAME`` holds one backend to the specification, and runs nothing else.

There is a test for each clause and operation.
"""

import pytest

HOME = "test_given_backend.py"


def pytest_addoption(parser):
    """Adds ``--backend``."""
    what = "hold a backend to the specification: a known one, or my_package.my_module:MyBackend"
    parser.addoption("--backend", metavar="NAME", help=what)


def pytest_ignore_collect(collection_path, config):
    """Collects HOME alone where a backend is given, and everything but HOME where none is."""
    if config.getoption("--backend") is None:
        return True if collection_path.name == HOME else None
    return None if collection_path.is_dir() or collection_path.name == HOME else True


def pytest_configure(config):
    """Refuses a backend that there is not, or that is not installed."""
    name = config.getoption("--backend")
    if name is not None:
        from quantspec.backends import registry

        try:
            reason = registry.why_not_installed(name)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
        if reason:
            raise pytest.UsageError(f"--backend {name}: {reason}")
