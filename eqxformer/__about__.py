"""The version, written down here only."""

__version__ = "0.1.0.dev0"
