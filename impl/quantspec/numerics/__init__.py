"""The arithmetic of the chapters on whole NumPy arrays, equal to their definitions in every bit; it knows no network.

``affine`` is chapter 1 (codes and grids), ``observers`` chapter 2 (ranges), ``integer`` chapter 3 (layers in integers)
with the ``windows`` that pooling looks through, ``attention`` that of chapter 6, ``folding`` that of chapter 4 (batch
normalization in a layer), ``accuracy`` chapter 9 (bounds and noise), ``dialects`` chapter 10. Compiled loops of
``kernels`` stand below; every other room may import from here.
"""
