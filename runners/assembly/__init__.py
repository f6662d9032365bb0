"""Checkpoints of layer plans, written straight from safetensors files without loading a model."""
