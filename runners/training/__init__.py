"""Pretraining and distillation: the loop, the losses, checkpoints, and training on several workers."""
