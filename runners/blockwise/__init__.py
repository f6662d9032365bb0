"""Blockwise distillation: one layer of a model alone in memory, the states between blocks, the joined student."""
