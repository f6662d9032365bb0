"""From text files to token artifacts, and reading them."""
