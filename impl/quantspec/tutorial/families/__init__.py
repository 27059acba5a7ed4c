"""Families of networks that people have, for ``quantspec zoo --family``.

One module for each library, which is an extra: a dict of names and how to build a small configuration with seeded
weights, and a batch for it. ``registry`` finds them, ``measure`` quantizes one in three ways and measures it, ``table``
shows the rows. The command line imports these, and tests do.
"""
