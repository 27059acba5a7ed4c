"""``--bounds``: every test's kernels check what they touch (see ``bounds``), and a test that had one touch what is not
its own fails."""

import contextlib

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bounds", action="store_true", help="kernels check every byte that they read or write")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("bounds"):
        import bounds

        stack = contextlib.ExitStack()
        config.stash[KEY] = stack.enter_context(bounds.checked())
        config.add_cleanup(stack.close)


KEY = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    result = yield
    if (bounds := item.config.stash.get(KEY, None)) is not None:
        assert not bounds.violations
    return result


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if (bounds := config.stash.get(KEY, None)) is not None:
        terminalreporter.write_line(f"bounds: {bounds.checks:,} accesses checked")
