"""What executes a compiled graph: the Ray executor and one module per task kind."""
