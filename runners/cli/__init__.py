"""The programs of this package, each started by a command of boomspec as `python -m`."""
