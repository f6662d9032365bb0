"""Where the `boomspec` command starts; also `python -m boomspec`."""

import gc
import os


def main() -> None:
    """Run the command line."""
    # A command lives for half a second. Looking for cycles to collect while modules are imported, and through the
    # entry points of every installed package for plugins of pydantic, took a sixth of that time (measured).
    gc.disable()
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from boomspec.commands.cli import main as commands

    commands()


if __name__ == "__main__":
    main()
