"""Kernels of this process for another CPU, whose instructions this one has too."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from quantspec.kernels import cpu, jit


@contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """Has kernels compiled for the CPU of ``QUANTSPEC_CPU=name``."""
    jit.machine()  # the process's own is for its own CPU
    cpu.target.cache_clear()
    try:
        with mock.patch.dict("os.environ", QUANTSPEC_CPU=name):
            target = cpu.target()
    finally:
        cpu.target.cache_clear()
    with mock.patch.object(cpu, "target", lambda: target):
        sources = jit.sources.__wrapped__()
        machine = jit.Machine()
        with mock.patch.multiple(jit, sources=lambda: sources, machine=lambda: machine):
            yield
