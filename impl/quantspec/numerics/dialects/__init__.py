"""The steps that real kernels take (chapter 10): one file for the alternatives of each choice, by their names.

``quantize``, ``qparams``, ``accumulate``, ``requantize`` with ``fixed_point``, ``float_output`` and ``operations`` hold
the alternatives, which are made of the steps in ``float32``; ``patches`` are the windows of convolutions as rows.
``dialect`` is the class that makes every choice, ``named`` the dialects by name: whoever computes in a dialect imports
these two.
"""
