"""The compiled engine: whole networks in one call of machine code, in the dialect ``onnx``.

``engine`` cuts a program into parts that compile and steps that do not. For each shape of inputs ``bound`` has plans:
one for each slice of the batch, which are shared out among ``workers``, or a ``team`` of them that shares the work on
a sample. ``plan`` makes them by what ``shapes`` knows of each kind of step, ``phases`` of transposed convolutions,
``layout`` of memory, ``emitters`` and ``layers`` of instructions. A plan is a frame of instructions; each calls a
kernel, written in LLVM's language with ``simd`` (``gemm``, ``depthwise``, ``real``, ``places``, ``codes``,
``dynamic``, ``recurrent``) and compiled, stored and loaded by ``native`` for the CPU that ``cpu`` finds. ``pack`` has
weights as the kernels read them. ``arrays`` quantizes and dequantizes arrays, ``extremes`` and ``histogram`` are what
observers see by; ``peak`` measures what the machine can do.
"""

DIALECT = "onnx"  # the one in which the compiled engine computes
