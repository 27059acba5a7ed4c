"""A pytest plugin: ``pytest --backend NAME`` holds one backend to the specification, a test for each clause and operation, and runs nothing else."""

import pytest

HOME = "test_given_backend.py"


def pytest_addoption(parser):
    parser.addoption("--backend", metavar="NAME", help="hold a backend to the specification: a known one, or my_package.my_module:MyBackend")


def pytest_ignore_collect(collection_path, config):
    if config.getoption("--backend") is None:
        return True if collection_path.name == HOME else None
    return None if collection_path.is_dir() or collection_path.name == HOME else True


def pytest_configure(config):
    name = config.getoption("--backend")
    if name is not None:
        from quantspec.backends import registry

        try:
            reason = registry.why_not_installed(name)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
        if reason:
            raise pytest.UsageError(f"--backend {name}: {reason}")
