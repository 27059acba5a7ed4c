"""The version of the package, for those rooms that may import nothing else of it."""

__version__ = "0.1.0"
