"""A Program as an ``nn.Module``: what quantization returns.

``module`` has the class and loads it from a file, ``summary`` prints it, ``size`` counts its bytes and its
multiply-accumulates (chapter 8). ``ptq``, ``onnx_export`` and everything above may import this room; it imports
``storage``, ``engines`` and below.
"""
