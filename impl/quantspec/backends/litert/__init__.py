"""LiteRT: ``litert`` is its adapter, ``flatbuffer`` writes the models of one operator that it runs. Needs the extra
``litert``; only the registry names it, and it is imported in workers alone."""
