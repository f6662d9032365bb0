"""transformers models: loading and saving, hidden states, the head, layers one by one, a family that shares weights."""
