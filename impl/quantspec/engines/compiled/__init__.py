"""The compiled engine: whole networks in one call of machine code, in the dialect ``onnx``.

``engine`` cuts a program into segments, whose steps compile (``selection``), and steps that do not. ``lowering`` puts
what has kernels of its own together, ``packing`` has weights as the kernels read them, ``transposed`` makes
transposed convolutions dense ones. For each shape of inputs ``batching`` has plans, one for each slice of the batch,
shared out among threads; ``parallel`` shares out the instructions of one plan. ``planner`` makes a plan: the
``shapes`` of all values, where they lie in memory, and the instructions of each step (``instructions``,
``layer_instructions``). ``recurrent`` runs the layers of recurrent networks, ``heads`` and ``attention`` steps of
attention. ``verify`` says what holds of lowered steps and of plans, for the tests. Nothing but ``engines`` imports this
room; it imports ``ir``, ``numerics`` and ``kernels``.
"""

DIALECT = "onnx"  # the one in which the compiled engine computes
