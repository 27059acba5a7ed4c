"""The compiled engine: whole networks in one call of machine code, in the dialect ``onnx``. See ``engine.Compiled``."""
