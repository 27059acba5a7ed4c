"""What a user may choose when a network is quantized, checked before any work."""

from dataclasses import dataclass

from quantspec.engines import registry
from quantspec.errors import flag, whole_number
from quantspec.numerics import affine
from quantspec.numerics.dialects.dialect import Dialect
from quantspec.numerics.dialects.named import dialect as find_dialect


@dataclass(frozen=True)
class Options:
    """How to quantize: see ``quantspec.prepare``. ``reduce_range`` and ``weight_bits`` are decided."""

    dialect: Dialect
    per_channel: bool
    reduce_range: bool
    bits: int
    weight_bits: int
    engine: str


def checked(
    *, per_channel: bool, reduce_range: bool | None, dialect: str, bits: int, weight_bits: int | None = None,
    engine: str,
) -> Options:  # fmt: skip
    """The choices; ValueError naming the argument for what is none, TypeError for flags that are no truth values."""
    chosen = find_dialect(dialect)
    affine.code_range(whole_number(bits, "bits"), signed=True)
    if weight_bits is not None and whole_number(weight_bits, "weight_bits") not in range(2, 9):
        raise ValueError(f"weight_bits: expected 2 to 8, or None for the value of bits, got {weight_bits}")
    registry.check(engine)
    flag(per_channel, "per_channel")
    # Only dialects whose accumulators saturate lose anything with all eight bits.
    saturates = chosen.accumulate_rule == "pairs"
    reduce_range = saturates if reduce_range is None else flag(reduce_range, "reduce_range")
    if reduce_range and bits == 2:
        raise ValueError("reduce_range: expected False for bits=2, as one bit less leaves no grid")
    return Options(chosen, per_channel, reduce_range, bits, bits if weight_bits is None else weight_bits, engine)
