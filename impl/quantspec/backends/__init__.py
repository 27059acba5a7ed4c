"""Adapters that put other people's quantized kernels behind one interface. The only place that touches them."""
