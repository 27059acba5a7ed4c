"""Post-training quantization: from a float graph to a Program (chapters 4 to 6).

``fusion`` lets layers absorb what surrounds them, ``placement`` decides which values are in codes and which stay in
float, ``conversion`` makes the steps, ``attending`` makes one of those that are attention; ``static`` and ``dynamic``
have the public functions around them, ``options`` what they accept, ``exclude`` what stays in float because the caller
says so. Comparison, tutorial and command line may import this room; it imports ``capture``, ``engines``, ``module`` and
below.
"""
