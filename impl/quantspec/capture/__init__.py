"""From a user's ``nn.Module`` to float graphs, which are compared with what the model itself computes (STA-SAME).

``tracer`` traces a copy of the model symbolically; ``recorder`` runs it on a batch and records what it does, for what
tracing gets wrong (``recorded`` has the graph of that, ``tracked`` stands for numbers, ``tensor_names`` has what may be
asked of a tensor, ``splitting`` in how many parts one comes); ``parts`` finds the largest parts of a model that are
networks, where the whole is none; ``acting`` what a model does in training mode only. ``builder`` turns a traced graph
into a ``FloatGraph``, by what ``operators``, ``layers``, ``norms`` and ``attention`` recognise; ``constants`` computes
what depends on parameters alone, ``products`` writes products with them as linear layers. ``copies`` and ``calls`` keep
the user's model and batches as they were. ``ptq``, ``module`` and everything above may import this room; it imports
``ir`` and below.
"""
