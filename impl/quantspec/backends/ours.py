"""Our own arithmetic behind the protocol, in any dialect: what the other backends are compared with."""

import numpy as np

from .. import __version__, fusion
from ..dialects import dialect
from ..affine import QParams
from ..integer import max_pool2d


class Ours:
    """quantspec in one dialect of chapter 10."""

    def __init__(self, name: str):
        self._rules = dialect(name)
        self.name, self.version, self.dialect = f"quantspec-{name}", __version__, name
