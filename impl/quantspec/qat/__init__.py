"""Quantization-aware training (chapter 7): the float network's parameters, trained through the integer network.

``grids`` gives the scales, zero points and codes of a step, ``functions`` what computes in codes and passes a gradient
around them, ``weights`` where a layer's weight comes from and the normalizations in it, ``steps`` what each step of a
Program computes while it is trained, ``network`` one captured graph, ``prepare`` the public functions, ``optimizers``
refuses those of the model that was copied, ``eager`` is what torch.compile leaves alone. It imports ``ptq`` and what
that imports; only the tutorial and the command line import it.
"""
