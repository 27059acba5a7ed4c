"""The two networks as plain data, between which quantization happens, and how to walk and run them.

``float_graph`` is what capture ends in and fusion rewrites; ``float_run`` runs it, for calibration. ``program`` is the
quantized network, which every engine, file, exporter and report reads. ``traverse`` walks the values of both,
``rearrange`` has what moves values without looking at them, ``attention`` what its calls are called with. Every room
above may import this one; it imports ``numerics``.
"""
