"""Plausible wrong implementations, each of which the suite must reject; ``python -m faults.kill`` tries them all."""
