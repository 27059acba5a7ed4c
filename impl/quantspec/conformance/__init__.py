"""Holds a backend to the specification: draws calls, asks the backend in a process of its own, and keeps the smallest
call that breaks a clause.

``call`` is a call as plain data, which ``draw``, ``draw_special``, ``draw_wide`` and ``draw_bulk`` make by the rules of
``sampling``. ``session`` asks a backend, ``checks`` and ``purity`` say what must hold of its answers, ``shape`` in what
way one is wrong, ``shrink`` makes what breaks it small, and ``passed_on`` is a checksum of what an adapter passes on.
``run`` puts these together to findings and ``fingerprint`` probes choices; ``results`` records both,
``report_markdown`` and ``report_html`` show them. ``smoke`` looks at an adapter before its backend is judged, and
``command`` is the command line's part of it all. Stands on ``backends`` and ``numerics``; the command line and the
tests import it.
"""
