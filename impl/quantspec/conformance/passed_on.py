"""What an adapter passes on to its kernels, as a checksum: of the scripts that it writes for the same calls each
time."""

import hashlib

from quantspec.backends.outcome import outcome
from quantspec.backends.protocol import REPRODUCTION
from quantspec.backends.worker import Worker

from .call import Call
from .draw import CALLS
from .draw_wide import OFF_ZERO
from .sampling import PASSED_SEED, sample
from .smoke import EASY

CALLS_EACH = 12


def calls(operation: str) -> list[Call]:
    """Calls of an operation: the easy one, and drawn ones with all kinds of arguments."""
    easy = [call for call in EASY if call.operation == operation]
    drawn = [CALLS[operation], *([OFF_ZERO[operation]] if operation in OFF_ZERO else [])]
    return easy + [call for kind in drawn for call in sample(kind, examples=CALLS_EACH, start=PASSED_SEED)]


def checksums(worker: Worker) -> dict[str, str]:
    """For each operation of a backend whose adapter writes its calls down, 16 digits that change when it passes on
    something else; calls that it cannot write down count by what it says of them."""
    found = {}
    for operation in worker.operations:
        written = [
            outcome(worker, REPRODUCTION, operation, *call.arguments, **call.options) for call in calls(operation)
        ]
        if any(script.kind == "value" for script in written):
            text = "\n".join(str(script.value) if script.kind == "value" else script.kind for script in written)
            found[operation] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found
