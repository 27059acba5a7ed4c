"""What ``quantspec run`` and ``quantspec zoo`` do, beside what torch does.

``tutorial`` quantizes the network that ``models`` trains on the digits of ``data`` and compares it with torch code by
code; ``few_bits`` trains it with weights of few bits, and ``shipped`` puts what was trained beside what is shipped;
``report`` makes a page of that, with one ``neuron`` worked out. ``zoo`` quantizes networks that people have,
beside what ``torch_fx`` makes of them. Stands on everything below it; the command line imports it, and tests and
benchmarks do.
"""
