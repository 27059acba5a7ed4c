"""Records: how a kernel is told what to do, by named entries of eight bytes.

A record is a class whose annotated names are its entries, in order: ``class Grid(Record): scale: Float; zero:
Integer``. The names of the class it is derived from come first, so that code for the one works on the other; a record
within a record (``Nested``) lies there whole. Entries get their places here and nowhere else, so that no two can
share one, and an instruction that takes more entries than there are is refused when its class is made.

Through the class a name is the entry itself, which ``Emitter.field`` reads in machine code (``emit.field(op,
Grid.scale)``); through a record it is the value (``grid.scale``). A record is made by all its entries; those that the
class gives a default are zero where they are left out.
"""

import struct
from typing import Any, ClassVar, Generic, Self, SupportsFloat, SupportsIndex, TypeVar, dataclass_transform, overload

import numpy as np

WIDTH = 40  # entries of an instruction
LINE = 8  # entries of a cache line
SomeRecord = TypeVar("SomeRecord", bound="Record")


def float_bits(value: SupportsFloat) -> int:
    """A float32 as the int64 entry that holds its bits."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


class Entry:
    """Where something lies in a record. ``count``: of eight bytes each; ``line``: whether it begins on a cache line."""

    index: int  # of the first, in its record

    def __init__(self, count: int = 1, *, line: bool = False):
        self.count, self.line = count, line


class Integer(Entry):
    """An int64: a count, a distance in bytes, or whether something is so."""

    @overload
    def __get__(self, record: None, owner: type) -> Self: ...
    @overload
    def __get__(self, record: "Record", owner: type) -> int: ...

    def __get__(self, record: "Record | None", owner: type) -> Self | int:
        return self if record is None else int(record.entries[self.index])

    def __set__(self, record: "Record", value: SupportsIndex) -> None:
        record.entries[self.index] = value


class Address(Integer):
    """Where something lies in memory."""


class Slot(Integer):
    """The number of an input or output of the program; -1 where there may be none."""


class Float(Entry):
    """A float32, in the lower half of its entry."""

    @overload
    def __get__(self, record: None, owner: type) -> Self: ...
    @overload
    def __get__(self, record: "Record", owner: type) -> float: ...

    def __get__(self, record: "Record | None", owner: type) -> Self | float:
        return self if record is None else float(record.entries[self.index : self.index + 1].view(np.float32)[0])

    def __set__(self, record: "Record", value: SupportsFloat) -> None:
        record.entries[self.index] = float_bits(value)


class Integers(Entry):
    """Several int64 in a row."""

    @overload
    def __get__(self, record: None, owner: type) -> Self: ...
    @overload
    def __get__(self, record: "Record", owner: type) -> np.ndarray: ...

    def __get__(self, record: "Record | None", owner: type) -> Self | np.ndarray:
        return self if record is None else record.entries[self.index : self.index + self.count]

    def __set__(self, record: "Record", value: np.ndarray) -> None:
        record.entries[self.index : self.index + self.count] = value


class Nested(Entry, Generic[SomeRecord]):
    """A record within a record."""

    def __init__(self, kind: type[SomeRecord]):
        super().__init__(kind.SIZE)
        self.kind = kind

    @overload
    def __get__(self, record: None, owner: type) -> Self: ...
    @overload
    def __get__(self, record: "Record", owner: type) -> SomeRecord: ...

    def __get__(self, record: "Record | None", owner: type) -> Self | SomeRecord:
        return self if record is None else self.kind.on(record.entries[self.index : self.index + self.count])

    def __set__(self, record: "Record", value: SomeRecord) -> None:
        record.entries[self.index : self.index + self.count] = value.entries[: self.count]


@dataclass_transform(kw_only_default=True)
class Record:
    """Named entries. ``SIZE``: how many there are; ``entries``: the int64 array that they lie in."""

    SIZE: ClassVar[int] = 0
    ROOM: ClassVar[int] = 0  # entries to make room for
    FIELDS: ClassVar[dict[str, Entry]] = {}
    NEEDED: ClassVar[frozenset[str]] = frozenset()
    entries: np.ndarray

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        own = {name: entry_of(cls, name, kind) for name, kind in cls.__dict__.get("__annotations__", {}).items()}
        if again := own.keys() & cls.FIELDS.keys():
            raise TypeError(f"{cls.__name__}: {', '.join(sorted(again))} is an entry of the record it is derived from")
        end = cls.SIZE
        for entry in own.values():
            entry.index = -(-end // LINE) * LINE if entry.line else end
            end = entry.index + entry.count
        cls.NEEDED = cls.NEEDED | (own.keys() - cls.__dict__.keys())
        cls.SIZE, cls.FIELDS = end, cls.FIELDS | own
        for name, entry in own.items():
            setattr(cls, name, entry)

    def __init__(self, **values: Any):
        if values.keys() - self.FIELDS.keys() or self.NEEDED - values.keys():
            unknown, missing = sorted(values.keys() - self.FIELDS.keys()), sorted(self.NEEDED - values.keys())
            name = type(self).__name__
            raise TypeError(f"{name}: entries that it does not have: {unknown}; entries that are missing: {missing}")
        self.entries = np.zeros(max(self.SIZE, self.ROOM), np.int64)
        for name, value in values.items():
            setattr(self, name, value)

    @classmethod
    def on(cls, entries: np.ndarray) -> Self:
        """The record that lies in an array."""
        record = cls.__new__(cls)
        record.entries = entries
        return record

    def copy(self) -> Self:
        return self.on(self.entries.copy())


def entry_of(record: type[Record], name: str, kind: Any) -> Entry:
    """The entry for an annotated name: what the class gives it, or one of the annotation's kind."""
    if name in record.__dict__:
        given = record.__dict__[name]
    elif getattr(kind, "__origin__", None) is Nested:
        given = Nested(kind.__args__[0])
    else:
        given = kind()
    if not isinstance(given, Entry):
        raise TypeError(f"{record.__name__}: {name} is no entry")
    return given


class Instruction(Record):
    """What one kernel is to do: the kernel's address, and entries of its own."""

    ROOM = WIDTH
    kernel: Address = Address()

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if cls.SIZE > WIDTH:
            raise TypeError(f"{cls.__name__}: an instruction has {WIDTH} entries, these are {cls.SIZE}")


class Grid(Record):
    """A grid as kernels that quantize read it.

    ``low`` and ``high`` have the first and the last code, and so has what lies beyond them.

    ``inverse``: the reciprocal of the scale; 0 where there is none, or the lowest code is not that of the type.
    """

    scale: Float
    inverse: Float
    low: Float
    high: Float
    zero: Integer


class Clamp(Record):
    """The lowest and the highest code in steps relative to the zero point, and the zero point."""

    lowest: Float
    highest: Float
    zero: Integer
