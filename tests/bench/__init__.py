"""``make bench``: how fast quantized networks are, beside the best float32 and int8 that others offer, in one process.

``rows`` says which networks, ``peers`` who else runs them, ``timing`` how; ``bench_networks`` and ``bench_other`` are
the tests that measure, ``plugin`` collects what they measured, ``results`` keeps it, ``page`` and ``plot`` show it, and
``peak`` is what the machine can do at most. Not a part of ``make test``.
"""
