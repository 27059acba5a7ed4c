"""Machine code, which knows bytes, addresses and numbers, and nothing of networks, grids or torch.

``emitter`` is LLVM's builder with the kernels' vocabulary, ``cpu`` says what the CPU can do, ``jit`` compiles, stores
and loads. A kernel is told what to do by a record of named entries (``records``); ``frame`` runs instructions one after
the other and is called from Python, ``threads`` keeps the workers that run frames for others, ``sharing`` shares frames
out among them, ``team`` among another library's. ``memory`` says how codes lie, ``packed`` how weights do. The kernels:
``quantize`` and ``planes`` between floats and codes, ``gemm``, ``depthwise`` and ``float_output`` for layers,
``dynamic_gemm``, ``recurrent_cell``, ``recurrent_step`` and ``attention`` for dynamic ones, ``images`` for pools and
for what is done byte by byte; ``arrays`` for whole arrays, ``minmax`` and ``histogram`` for observers, ``training`` for
layers in training, on what ``steps`` has. ``numerics``, ``engines.compiled`` and ``qat`` import this room, which
imports none.
"""
