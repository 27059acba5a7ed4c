"""Quantized networks as ONNX models in QDQ form.

``export`` builds the model, step by step: ``codes`` has the operators of steps on codes and of dynamic layers,
``rearrange`` those of what only moves values, ``attention`` those of attention in codes, ``float_ops`` those of what
stays in float (softmax, normalizations). ``builder`` is the ONNX graph in the making, with what is known of each
tensor's shape. ``check`` compares codes with ONNX Runtime's. ``tutorial`` and the command may import this room; it
imports ``module``, ``storage`` and below, and the packages of the extra ``onnx`` when it is used.
"""
