"""What errors say."""

import re


def exactly(message: str) -> str:
    """The pattern, for ``pytest.raises``, of this text alone."""
    return rf"\A{re.escape(message)}\Z"
