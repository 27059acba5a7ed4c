"""The instructions of AMX as loops, so that what is computed in tiles runs on any CPU.

A function's eight tiles lie on its stack: they are its own from the first instruction on, as a thread's are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

from llvmlite import ir

from quantspec.kernels import cpu, jit, tiles
from quantspec.kernels.emitter import I8, I32, I64, INTS, Emitter
from quantspec.kernels.product import Product, ProductInstruction

ROWS, BYTES = 16, 1024  # of a tile: rows of 64 bytes


class Looping(Emitter):
    """Writes loops instead of instructions for tiles."""

    def native(self, name, kind, *args):
        write = getattr(self, name.rpartition(".")[2], None) if ".x86.t" in name or ".x86.ld" in name else None
        return write(*args) if write else super().native(name, kind, *args)

    def tile(self, number):
        """The address of a tile."""
        entry = self.function.entry_basic_block
        held = next((i for i in entry.instructions if getattr(i, "name", "").startswith("tiles")), None)
        if held is None:
            with self.goto_entry_block():
                held = self.alloca(ir.ArrayType(I8, 8 * BYTES), name="tiles")
                held.align = 64
        return self.add(self.ptrtoint(held, I64), I64(BYTES * number.constant))

    def ldtilecfg(self, address):
        """How many steps tiles have is the product's to tell."""

    def tilerelease(self):
        """They are given back with the stack."""

    def tilezero(self, number):
        target, zeros = self.tile(number), self.splat(0, INTS)
        self.each(I64(ROWS), lambda i: self.write(zeros, self.add(target, self.shl(i, I64(6)))))

    def moved(self, number, pointer, stride, way):
        """Sixteen rows between a tile and memory."""
        tile, memory = self.tile(number), self.ptrtoint(pointer, I64)

        def row(i):
            ends = self.add(tile, self.shl(i, I64(6))), self.add(memory, self.mul(i, stride))
            self.write(self.read(ends[1 - way], INTS), ends[way])

        self.each(I64(ROWS), row)

    def tileloadd64(self, number, pointer, stride):
        self.moved(number, pointer, stride, 0)

    def tilestored64(self, number, pointer, stride):
        self.moved(number, pointer, stride, 1)

    def tdpbusd(self, target, x, w):
        """As many steps as the tiles of the product have that the function is told of first."""
        totals, codes, weights = self.tile(target), self.tile(x), self.tile(w)
        product = self.place(self.function.args[0], ProductInstruction.product)
        steps = self.field(product, Product.tile_steps)

        def row(i):
            at = self.shl(i, I64(6))

            def step(k, carried):
                four = self.read(self.add(codes, self.add(at, self.shl(k, I64(2)))), I32)
                outputs = self.read(self.add(weights, self.shl(k, I64(6))), INTS)
                return [self.dot(carried[0], self.splat_to(four, INTS), outputs)]

            place = self.add(totals, at)
            self.write(self.loop(steps, [self.read(place, INTS)], step)[0], place)

        self.each(I64(ROWS), row)


@contextmanager
def emulated() -> Iterator[None]:
    """Kernels that are made inside are those of a CPU with tiles, which are loops on the one at hand."""
    jit.machine()  # the process's own is for its own CPU
    target = replace(cpu.target(), has_tiles=True)
    tiles.allowed.cache_clear()
    try:
        with mock.patch.object(cpu, "target", lambda: target), mock.patch.object(tiles, "ask", lambda: 0):
            sources, machine = jit.sources.__wrapped__(), jit.Machine()
            machine.emitter = Looping
            with mock.patch.multiple(jit, sources=lambda: sources, machine=lambda: machine):
                yield
    finally:
        tiles.allowed.cache_clear()
