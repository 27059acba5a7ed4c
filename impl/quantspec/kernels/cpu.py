"""What the CPU can do.

The kernels are written for vectors of sixteen 32-bit lanes. LLVM splits them where registers are shorter; only
products of bytes, the fused multiplication and the packing of numbers into bytes differ with the CPU, and all are exact
everywhere, so that every CPU gives the same codes.

``QUANTSPEC_CPU``, read once per process, makes the kernels be compiled for another CPU than the one at hand:
``generic`` (no extensions at all), ``avx2`` (no dot product of bytes) or ``avx512vl`` (the dot product in registers
of 256 bits only).
"""

import functools
import os
import platform
from dataclasses import dataclass

from llvmlite import binding

AVX2 = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt"
AVX512VL = f"{AVX2},+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512vnni"
EMULATED = {"generic": ("generic", ""), "avx2": ("haswell", AVX2), "avx512vl": ("icelake-client", AVX512VL)}


@dataclass(frozen=True)
class Cpu:
    """LLVM's name of a CPU, its features as LLVM writes them, the longest dot product of bytes to use, in lanes, and
    whether it has certain instructions.

    ``has_halves``: dot products of half as many lanes beside the longest, which take half as long on some CPUs and
    never longer. ``has_tiles``: products of tiles of bytes, on a system that this package knows how to ask for them.
    ``has_pairs``: products of bytes, added in pairs, in registers of 256 bits, and no dot products of bytes.
    ``packed_lanes``: how many 32-bit lanes a register has whose numbers it packs into shorts and bytes that saturate.
    """

    name: str
    features: str
    dot_lanes: int
    has_fma: bool
    looks_up: bool  # 128 bytes at a time
    has_halves: bool
    has_tiles: bool
    has_pairs: bool
    packed_lanes: int


def is_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64", "i386", "i686")


@functools.cache
def target() -> Cpu:
    """The CPU to compile for. ValueError when QUANTSPEC_CPU asks for an unknown one."""
    wanted = os.environ.get("QUANTSPEC_CPU")
    if wanted and wanted not in EMULATED:
        raise ValueError(f"QUANTSPEC_CPU: expected one of {', '.join(EMULATED)}, got {wanted!r}")
    if wanted:
        name, features = EMULATED[wanted]
    else:
        name, features = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    available = {feature[1:] for feature in features.split(",") if feature.startswith("+")}
    if {"avx512f", "avx512bw", "avx512vnni"} <= available and wanted != "avx512vl":
        lanes = 16
    else:
        lanes = 8 if {"avx512vl", "avx512vnni"} <= available or "avxvnni" in available else 0
    return Cpu(
        name, features, lanes, has_fma="fma" in available or "avx512f" in available,
        looks_up={"avx512vbmi", "avx512bw"} <= available, has_halves=lanes == 16 and "avx512vl" in available,
        has_tiles=lanes == 16 and {"amx-tile", "amx-int8"} <= available and platform.system() == "Linux",
        has_pairs=not lanes and "avx2" in available,
        packed_lanes=16 if lanes == 16 else 8 if "avx2" in available else 0,
    )  # fmt: skip
