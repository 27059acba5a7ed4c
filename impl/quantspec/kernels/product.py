"""What products of codes are told."""

from .records import Address, Clamp, Float, Instruction, Integer, Nested, Record, Slot

PANEL = 2  # blocks of sixteen outputs, whose weights lie beside each other


class Product(Record):
    """What every product has.

    ``x`` and ``y``: where inputs and outputs begin, of which a row is as far from there as its entry of the int32
    offsets says.

    ``bias`` and ``factor`` have an entry for each lane of all blocks. Rows go in chunks, whose inputs stay in the
    cache; a row's inputs are runs of steps. ``ahead`` and ``advance`` are set while running: where the next panel is to
    be fetched from, and how far that moves with each half step. ``buffer``: memory for a unit that computes rows in
    groups (``grouped``), or for sums (``recurrent_step``), or 0; ``pitch``: bytes from one gathered row to the next
    there, or 0 where rows are read where they lie. ``apart``: bytes from one row to the next in each sixteen of them,
    which may all be read, or 0 where they lie otherwise; with it runs are of whole tiles of ``tile_steps``, and behind
    their offsets lie those of all tiles of a row. ``sums``: the sum of each output's weights, int32.
    """

    x: Address
    y: Address
    weight: Address
    bias: Address
    factor: Address
    sums: Address
    rows: Integer
    outputs: Integer
    blocks: Integer
    steps: Integer
    runs: Integer
    run_steps: Integer
    run_offsets: Address
    x_offsets: Address
    chunk: Integer
    ahead: Address = Address()
    advance: Integer = Integer()
    buffer: Address = Address()
    pitch: Integer = Integer()
    apart: Integer = Integer()
    tile_steps: Integer = Integer()


class ProductInstruction(Instruction):
    """A product, and by its kind what its outputs are."""

    product: Nested[Product]


class ProductCodes(ProductInstruction):
    """Outputs are codes."""

    y_offsets: Address
    clamp: Nested[Clamp]


class ProductAdd(ProductCodes):
    """Outputs are the codes of a sum: of the product's and of another value's, ``b``.

    ``is_first``: whether the product is the first operand.

    ``ratio`` belongs to the first operand, ``b_ratio`` to the second.
    """

    b: Address
    b_offsets: Address
    is_first: Integer
    ratio: Float
    b_ratio: Float
    start: Float
    lowest: Float
    highest: Float


class ProductToFloats(ProductInstruction):
    """Outputs are floats.

    ``past``: whether whole lines of them go past the caches; ``slot``: the output of the program that they are.
    """

    past: Integer
    relu: Integer
    slot: Slot
