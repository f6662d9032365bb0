"""`python -m runners GRAPH.json --store DIR`: run a compiled graph. See `runners.cli.run`."""

import sys

from runners.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
