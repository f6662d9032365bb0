"""The boomspec compiler: from a YAML experiment spec to a content-addressed task graph.

This package is light: it never imports torch, ray, transformers, datasets or numpy.
What executes a compiled graph lives in the sibling package `runners`.
"""

__version__ = "0.1.0"
