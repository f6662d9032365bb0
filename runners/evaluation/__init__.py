"""Measuring models: loss on held-out text, and lm-eval tasks."""
