"""The version, in a file that all others may import."""

__version__ = "0.2.0"
