"""From the text of a spec file to validated experiments, with a place for every problem."""
