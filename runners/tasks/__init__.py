"""One module per task kind, each with `run(context)`."""
