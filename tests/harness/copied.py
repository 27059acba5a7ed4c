"""Fixtures for tests whose processes may be copies of one that has imported what they need (``forking``)."""

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import IO

import pytest

from forking import Copy, Sources

SERVER = "quantspec.backends.server"


@pytest.fixture(scope="session")
def sources() -> Iterator[Sources]:
    """Processes to copy, which end with the session."""
    made = Sources()
    yield made
    made.close()


@pytest.fixture(scope="module")
def copied_workers(sources: Sources) -> Iterator[None]:
    """The workers of a module's tests are copies, where there can be any: its tests ask what backends answer, and not
    how their processes start."""
    from quantspec.backends import worker

    with pytest.MonkeyPatch.context() as patch:
        if hasattr(os, "fork"):
            made = SimpleNamespace(**{**vars(subprocess), "Popen": partial(as_copy, sources)})
            patch.setattr(worker, "subprocess", made)
        yield


def as_copy(sources: Sources, command: list[str], *, env: dict[str, str], stderr: IO[bytes], **_: object) -> Copy:
    """A worker's process, made as a copy."""
    from quantspec.backends import registry

    *start, name = command
    assert start[1:] == ["-m", SERVER]
    modules = (SERVER,)
    if name in registry.ENTRIES:  # others may not live through their import
        modules += (registry.find(name).factory.partition(":")[0],)
    code = f"from {SERVER} import main; main()"
    return sources.copy(code, name, environment=env, stderr=stderr.fileno(), modules=modules)
