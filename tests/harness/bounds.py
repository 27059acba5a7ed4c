"""Kernels that check every byte before they read or write it, and the list of the memory that is theirs.

``with bounds.checked() as bounds`` has all kernels that are made meanwhile compiled by an emitter whose ``at`` and
``lines`` first ask whether what is about to be touched lies within one range of memory that was given to machine
code: an array of ``aligned`` or ``memory_for``, a tensor whose address was asked for, an array at its ``place``, what a
frame keeps, a variable on the stack. What does not is noted in ``bounds.violations``, and another place is touched
instead. Networks must be made inside, and in a process of one Python thread.
"""

import contextlib
import ctypes
import importlib
import pkgutil
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir

import quantspec
from quantspec.engines import compiled, tensors
from quantspec.engines.compiled import attention, heads, parallel, planner, recurrent
from quantspec.kernels import arrays, frame, jit, memory, minmax, threads
from quantspec.kernels.emitter import I64, Emitter, function
from quantspec.numerics import observers

COUNT, FIRST, CHECKS, TABLE, CELLS = 0, 1, 5, 6, 7  # of cells; FIRST: address, bytes, whether written to, site
STACK_ARRAYS = 64  # at most at a time
SITES = 2**18  # places in kernels that touch memory, at most
ELSEWHERE = 2**23  # bytes to touch instead
PREPARED = frame.caller, frame.array_caller, observers.wider


@dataclass(frozen=True)
class Violation:
    """The first of ``count`` times that something else was touched: where in the source of which kernel, and how many
    bytes from the nearest range it lies."""

    count: int
    site: str
    address: int
    nbytes: int
    writes: bool
    nearest: int


class Bounds:
    """The ranges of memory: for each its begin, the end of what may be read, and the end of what may be written to."""

    def __init__(self) -> None:
        self.ranges: dict[tuple[int, int], tuple[int, int, int]] = {}
        self.owners: dict[tuple[int, int], Any] = {}  # weak references, which tell when a range ends
        self.tables: list[np.ndarray] = []
        self.cells = np.zeros(CELLS, np.int64)
        self.stack = np.zeros(2 * STACK_ARRAYS, np.int64)
        self.elsewhere = np.zeros(ELSEWHERE, np.uint8)
        self.sites: list[str] = []
        self.hints = np.zeros(SITES, np.int64)  # in which range each touched memory last, by its number there
        self.fresh = False
        self.publish()

    def publish(self) -> None:
        """Has machine code see the ranges as they are now; workers may still look at the list of before."""
        if not self.fresh:
            rows = list(self.ranges.values())
            table = np.array([len(rows), *[entry for row in rows for entry in row]], np.int64)
            self.tables.append(table)
            self.cells[TABLE] = table.ctypes.data
            self.fresh = True

    def add(self, owner: Any, begin: int, readable: int, writable: int) -> None:
        """A range that exists as long as its owner does."""
        key = id(owner), begin
        self.ranges[key] = begin, readable, writable
        self.fresh = False

        def gone(_: Any) -> None:
            self.ranges.pop(key, None)
            self.owners.pop(key, None)
            self.fresh = False

        self.owners[key] = weakref.ref(owner, gone)

    def add_array(self, array: np.ndarray, *, writes: bool, behind: int = 0) -> None:
        """An array in one piece, and so many bytes behind it that may be read."""
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        begin, end = array.ctypes.data, array.ctypes.data + array.nbytes
        _, readable, writable = self.ranges.get((id(owner), begin), (0, 0, 0))
        if end + behind > readable or (writes and end > writable):
            self.add(owner, begin, end + behind, end if writes else begin)

    @property
    def violations(self) -> list[Violation]:
        """What was found since this was last asked."""
        count, address, nbytes, writes, site = (int(cell) for cell in self.cells[: FIRST + 4])
        self.cells[COUNT] = 0
        if count == 0:
            return []
        distances = (max(first - address, address + nbytes - last, 0) for first, last, _ in list(self.ranges.values()))
        return [Violation(count, self.sites[site], address, nbytes, bool(writes), min(distances, default=0))]

    @property
    def checks(self) -> int:
        """How often something was about to be touched."""
        return int(self.cells[CHECKS])


def emitter_of(bounds: Bounds) -> type[Emitter]:
    """What writes kernels that check what they touch."""
    cells, stack = bounds.cells.ctypes.data, bounds.stack.ctypes.data
    middle = bounds.elsewhere.ctypes.data + 64 + -bounds.elsewhere.ctypes.data % 64

    def raw(emit: Emitter, address: Any) -> Any:
        return emit.inttoptr(address, I64.as_pointer())

    def within(emit: Emitter, row: Any, width: int, address: Any, end: Any, writes: Any) -> Any:
        """1 where bytes lie within a range."""
        first, readable = emit.load(raw(emit, row)), emit.load(raw(emit, emit.add(row, I64(8))))
        last = emit.load(raw(emit, emit.add(row, emit.select(writes, I64(8 * width - 8), I64(8)))))
        inside = emit.and_(emit.icmp_unsigned("<=", first, address), emit.icmp_unsigned("<=", end, last))
        return emit.zext(emit.and_(inside, emit.icmp_unsigned("<=", end, readable)), I64)

    def check(emit: Emitter, address: Any, nbytes: Any, written: Any, site: Any) -> Any:
        """How far from the address to touch memory: 0 where the bytes are the kernel's."""
        end, writes = emit.add(address, nbytes), emit.icmp_signed("!=", written, I64(0))
        emit.atomic_rmw("add", raw(emit, I64(cells + 8 * CHECKS)), I64(1), "monotonic")
        table = emit.load_atomic(raw(emit, I64(cells + 8 * TABLE)), "acquire", 8)
        count = emit.load(raw(emit, table))
        hint = raw(emit, emit.add(I64(bounds.hints.ctypes.data), emit.shl(site, I64(3))))

        def of_table(index: Any) -> Any:
            return within(emit, emit.add(table, emit.add(I64(8), emit.mul(index, I64(24)))), 3, address, end, writes)

        def look(index: Any) -> Any:
            inside = of_table(index)
            with emit.if_then(emit.icmp_signed("!=", inside, I64(0))):
                emit.store(index, hint)
            return inside

        def of_stack(index: Any) -> Any:
            return within(emit, emit.add(I64(stack), emit.shl(index, I64(4))), 2, address, end, writes)

        def everywhere() -> Any:
            return emit.or_(emit.any_of(count, look), emit.any_of(I64(STACK_ARRAYS), of_stack))

        # Most places of a kernel touch what they touched last, of which the list of today is asked.
        last = emit.load(hint)
        found = emit.if_any(emit.icmp_signed("<", last, count), lambda: of_table(last))
        found = emit.or_(found, emit.zext(emit.icmp_signed("==", nbytes, I64(0)), I64))
        found = emit.or_(found, emit.if_any(emit.icmp_signed("==", found, I64(0)), everywhere))
        result = emit.alloca(I64)
        emit.store(I64(0), result)
        with emit.if_then(emit.icmp_signed("==", found, I64(0)), likely=False):
            before = emit.atomic_rmw("add", raw(emit, I64(cells + 8 * COUNT)), I64(1), "seq_cst")
            with emit.if_then(emit.icmp_signed("==", before, I64(0))):
                for index, value in enumerate((address, nbytes, written, site)):
                    emit.store(value, raw(emit, I64(cells + 8 * (FIRST + index))))
            emit.store(emit.sub(I64(middle), address), result)
        return emit.load(result)

    def claim(emit: Emitter, first: Any, end: Any) -> Any:
        """Adds a range on the stack; where that is noted."""

        def look(index: Any, carried: list[Any]) -> list[Any]:
            row = emit.add(I64(stack), emit.shl(index, I64(4)))
            free = emit.icmp_signed("==", carried[0], I64(0))

            def take() -> Any:
                pair = emit.cmpxchg(raw(emit, row), I64(0), first, "seq_cst", "seq_cst")
                return emit.select(emit.extract_value(pair, 1), row, I64(0))

            return [emit.or_(carried[0], emit.if_any(free, take))]

        (row,) = emit.loop(I64(STACK_ARRAYS), [I64(0)], look)
        emit.store_atomic(end, raw(emit, emit.add(row, I64(8))), "seq_cst", 8)
        return row

    class Checked(Emitter):
        """Asks before it touches."""

        def moved(self, address: Any, nbytes: Any, writes: bool) -> Any:
            """How far from the address to touch memory."""
            kernel = self.module.name.removeprefix("quantspec_").removesuffix(f"_{type(self).__name__}")
            bounds.sites.append(site(kernel))
            assert len(bounds.sites) <= SITES
            arguments = [address, nbytes, I64(int(writes)), I64(len(bounds.sites) - 1)]
            return self.call(function(self.module, "quantspec_check", 4, check), arguments)

        def at(self, address: Any, kind: Any, *, mask: Any = None, writes: bool = False) -> Any:
            size = nbytes_of(kind)
            if mask is None:
                return super().at(self.add(address, self.moved(address, I64(size), writes)), kind)
            lanes, each = kind.count, size // kind.count
            bits = self.zext(self.bitcast(mask, ir.IntType(lanes)), I64)
            first = self.native("llvm.cttz.i64", I64, bits, ir.IntType(1)(0))
            last = self.sub(I64(64), self.native("llvm.ctlz.i64", I64, bits, ir.IntType(1)(0)))
            none = self.icmp_signed("==", bits, I64(0))
            first = self.mul(self.select(none, I64(0), first), I64(each))
            touched = self.sub(self.mul(last, I64(each)), first)
            moved = self.moved(self.add(address, first), self.select(none, I64(0), touched), writes)
            return super().at(self.add(address, moved), kind)

        def lines(self, address: Any, stride: Any, count: int, *, writes: bool = False) -> Any:
            moved = I64(0)
            for number in range(count):
                one = self.moved(self.add(address, self.mul(stride, I64(number))), I64(64), writes)
                moved = self.select(self.icmp_signed("==", moved, I64(0)), one, moved)
            return super().lines(self.add(address, moved), stride, count, writes=writes)

        def stack(self, kind: Any, align: int | None = None) -> Any:
            address = super().stack(kind, align)
            end = self.add(address, I64(nbytes_of(kind)))
            row = self.call(function(self.module, "quantspec_claim", 2, claim), [address, end])
            self.rows = [*getattr(self, "rows", []), row]
            return address

        def ret(self, value: Any) -> Any:
            """The function ends, and its variables do."""
            for row in getattr(self, "rows", []):
                for place in (self.add(row, I64(8)), row):
                    self.store_atomic(I64(0), raw(self, place), "seq_cst", 8)
            return super().ret(value)

    return type(f"Checked{id(bounds)}", (Checked,), {})


def nbytes_of(kind: Any) -> int:
    """The bytes of a type: of integers, floats, and vectors and arrays of those."""
    if isinstance(kind, (ir.VectorType, ir.ArrayType)):
        return int(kind.count * nbytes_of(kind.element))
    sizes: dict[Any, int] = {ir.FloatType(): 4, ir.DoubleType(): 8}
    return sizes[kind] if kind in sizes else -(-kind.width // 8)


def site(kernel: str) -> str:
    """Where in the source of the kernels something is touched."""
    at = sys._getframe(1)
    while at.f_back and Path(at.f_code.co_filename).name in ("bounds.py", "emitter.py"):
        at = at.f_back
    return f"{kernel}, {Path(at.f_code.co_filename).name}:{at.f_lineno}"


def ended(*_: Any) -> None:
    """Forgets what this process and thread have prepared with other kernels."""
    for cached in PREPARED:
        cached.cache_clear()
    arrays.ready = arrays.Ready()
    minmax.local, heads.HERE = type(minmax.local)(), type(heads.HERE)()
    threads.pool.forget()
    threads.pool.busy[0] = 0


@contextlib.contextmanager
def checked() -> Iterator[Bounds]:
    """Kernels check what they touch."""
    for room in pkgutil.walk_packages(compiled.__path__, f"{compiled.__name__}."):
        importlib.import_module(room.name)
    bounds = Bounds()
    machine = jit.machine()
    usual, machine.emitter = machine.emitter, emitter_of(bounds)
    changed: list[tuple[Any, str, Any]] = []

    def replace(original: Callable[..., Any], ours: Callable[..., Any]) -> None:
        """Has all modules call ours."""
        for name, module in list(sys.modules.items()):
            if name.startswith(quantspec.__name__):
                for attribute, value in list(vars(module).items()):
                    if value is original:
                        changed.append((module, attribute, original))
                        setattr(module, attribute, ours)

    def method(owner: type, name: str, ours: Callable[..., Any]) -> None:
        changed.append((owner, name, getattr(owner, name)))
        setattr(owner, name, ours)

    for original, ours in givers(bounds).items():
        replace(original, ours)
    for owner in (planner.Planner, parallel.Parallel, recurrent.Frames, attention.Bound):
        method(owner, "keep", keeping(bounds, owner.keep))
    method(minmax.Prepared, "__init__", preparing(bounds, minmax.Prepared.__init__))
    ended()
    try:
        yield bounds
    finally:
        machine.emitter = usual
        for module, name, original in reversed(changed):
            setattr(module, name, original)
        ended()


def keeping(bounds: Bounds, original: Callable[..., int]) -> Callable[..., int]:
    """``keep`` of what holds arrays."""

    def keep(self: Any, array: np.ndarray) -> int:
        bounds.add_array(array, writes=False)
        return original(self, array)

    return keep


def preparing(bounds: Bounds, original: Callable[..., None]) -> Callable[..., None]:
    """Of what is prepared for minima and maxima, the two floats."""

    def prepare(self: Any) -> None:
        original(self)
        start = ctypes.addressof(self.found)
        bounds.add(self.found, start, start + 8, start + 8)

    return prepare


def givers(bounds: Bounds) -> dict[Any, Callable[..., Any]]:
    """What gives memory or addresses to machine code, or has it run, by what it stands for."""
    aligned, memory_for, workspace, place = memory.aligned, memory.memory_for, memory.workspace, memory.place
    address, float_address, rows_address = tensors.address, tensors.float_address, tensors.rows_address
    caller, array_caller, wider = frame.caller, frame.array_caller, minmax.wider
    large_pages = memory.in_large_pages

    def our_aligned(*args: Any, **kwargs: Any) -> np.ndarray:
        array = aligned(*args, **kwargs)
        bounds.add_array(array, writes=True)
        return array

    def our_memory_for(nbytes: int) -> np.ndarray:
        array = memory_for(nbytes)
        start = array.ctypes.data
        for key in [key for key in list(bounds.ranges) if key[1] == start]:
            del bounds.ranges[key]
        bounds.add_array(array, writes=False, behind=memory.WEIGHT_SLACK)
        return array

    def our_large_pages(nbytes: int) -> np.ndarray | None:
        array = large_pages(nbytes)
        if array is not None:
            bounds.add_array(array, writes=False)
        return array

    def our_workspace(use: str, member: int, nbytes: int) -> np.ndarray:
        return our_aligned(nbytes)  # not a byte more

    def our_place(x: np.ndarray) -> int:
        bounds.add_array(x, writes=False)
        return place(x)

    def add_tensor(x: Any, start: int, writes: bool) -> None:
        if start:
            bounds.add(x, start, start + x.nbytes, start + x.nbytes if writes else start)

    def our_address(x: torch.Tensor) -> int:
        start = address(x)
        add_tensor(x, start, True)
        return start

    def our_float_address(x: Any, *kind: torch.dtype) -> int:
        start = float_address(x, *kind)
        add_tensor(x, start, False)
        return start

    def our_rows_address(x: torch.Tensor) -> int:
        start = rows_address(x)
        if start:
            end = start + x.itemsize * (tensors.end_of(x) - x.storage_offset())
            bounds.add(x, start, end, start)
        return start

    def our_caller() -> Callable[..., int]:
        run = caller()

        def published(*arguments: Any) -> int:
            bounds.publish()
            return run(*arguments)

        return published

    def our_array_caller() -> Callable[..., int]:
        run = array_caller()

        def with_arrays(frame: int, x: Any, y: Any) -> int:
            for array, writes in ((x, False), (y, True)):
                start, end = array.ctypes.data, array.ctypes.data + array.nbytes
                bounds.add(array, start, end, end if writes else start)
            bounds.publish()
            return run(frame, x, y)

        return with_arrays

    def our_wider(start: int, count: int, ends: minmax.Held) -> tuple[float, float] | None:
        bounds.add(ends[0], ends[1], ends[1] + 8, ends[1])
        values = set()  # which exists until they were read
        if not any(first <= start < last for first, last, _ in list(bounds.ranges.values())):
            bounds.add(values, start, start + 4 * count, start)
        return wider(start, count, ends)

    return {
        aligned: our_aligned, memory_for: our_memory_for, workspace: our_workspace, place: our_place,
        address: our_address, float_address: our_float_address, rows_address: our_rows_address, caller: our_caller,
        array_caller: our_array_caller, wider: our_wider, large_pages: our_large_pages,
    }  # fmt: skip
