"""Engines run a Program: ``engine(program)`` gives a function from a batch to the output.

A batch is a dict of inputs by name. Every engine gives, bit for bit, what ``reference`` gives in the dialect that it
declares. ``reference`` and the ``reference_...`` modules compute each step as its chapter says,
``torch_matmul`` takes torch's product of int8 matrices for the accumulators, ``autotune`` chooses between the two,
``compiled`` runs whole networks in machine code, and ``registry`` finds an engine by name. Module, storage and
everything above may import this room; it imports ``ir``, ``numerics`` and ``kernels``.
"""
