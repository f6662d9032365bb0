"""From the text of a spec to validated experiments, with a place for every problem."""
