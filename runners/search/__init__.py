"""Choices that need data: which blocks to patch at each size, which layers to keep."""
