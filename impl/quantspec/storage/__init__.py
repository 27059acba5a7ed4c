"""Quantized networks in files, which hold no code.

``file`` writes and reads one, ``json_fields`` turns dataclasses and arguments into JSON and back, ``allowed`` lists the
functions, methods and modules that a file may name, ``callables`` stores what calls in float call, ``validate`` checks
what was read before anything runs. ``module`` and everything above may import this room; it imports ``capture``,
``engines`` and below.
"""
