"""Our own arithmetic behind the protocol, in any dialect: what the other backends are compared with."""


from .. import __version__
from ..dialects import dialect


class Ours:
    """quantspec in one dialect of chapter 10."""

    def __init__(self, name: str):
        self._rules = dialect(name)
        self.name, self.version, self.dialect = f"quantspec-{name}", __version__, name
