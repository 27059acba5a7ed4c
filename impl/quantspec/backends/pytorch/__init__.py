"""PyTorch: ``engines`` adapts its quantized operators, ``fake_quantize`` and ``pointwise`` what it has outside of its
engines, ``reproduce`` writes their calls down. ``quantized`` is its eager workflow on whole networks, for the tutorial
to compare with.
"""
