"""The pieces that `boomspec.compile` puts together."""
