"""The version of boomspec."""

__version__ = "0.1.0"
