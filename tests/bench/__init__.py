"""``make bench``: how fast quantized networks are, beside the best float32 and int8 that others offer, in one process.

``rows`` says which networks, ``peers`` who else runs them, ``timing`` how; ``bench_networks`` and ``bench_other`` are
the tests that measure, ``plugin`` collects what they measured, ``results`` keeps it, ``page`` and ``plot`` show it, and
``peak`` is what the machine can do at most. Not a part of ``make test``.

With ``QUANTSPEC_CPU=avx2`` all are held to AVX2: ours, and the peers that can be told, before they are loaded. Who
cannot is left out.
"""

import os

from quantspec.backends.registry import NO_VNNI

# How libraries are told to do without what AVX2 has not.
TOLD = {"avx2": NO_VNNI | {"ATEN_CPU_CAPABILITY": "avx2"}}
HELD_TO = os.environ.get("QUANTSPEC_CPU", "")
if HELD_TO:
    if HELD_TO not in TOLD:
        raise ValueError(f"QUANTSPEC_CPU: peers can be held to {', '.join(TOLD)}, got {HELD_TO!r}")
    os.environ.update(TOLD[HELD_TO])
