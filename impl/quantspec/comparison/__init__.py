"""``qs.compare``: a quantized network beside its float model, layer by layer (ACC-COMPARE).

``compare`` runs both on data; ``layers`` finds which layer of the float graph became which of the network; ``result``
is what is returned: a table, data and a picture. It may import everything that quantizes; ``tutorial`` may import it.
"""
