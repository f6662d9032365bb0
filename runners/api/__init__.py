"""A family in Python, as `boomspec.family` gives it: sizes, results, models, text."""
