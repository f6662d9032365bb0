"""Check with tiny random models in transformers that every size is assembled correctly."""
