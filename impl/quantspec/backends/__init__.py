"""Adapters that put other people's quantized kernels behind one interface, which is the only place that touches them.

``protocol`` says what a backend is, ``registry`` names those that are known and how each is made, ``reference`` is our
own arithmetic as one; ``pytorch/``, ``onnx/``, ``litert/`` and ``openvino`` hold the adapters of peers. ``worker`` runs
a backend in a process whose side is ``server``, over the frames of ``wire``; ``outcome`` is what comes of a call,
``cache`` what an adapter keeps between calls, ``reproduce`` a call written down as a script without us. Stands on
``numerics``; ``conformance`` and ``tutorial`` import it, and nothing else does.
"""
