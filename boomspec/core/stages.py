"""Words of the socket between `boomspec run` and the process that runs its graphs (`runners.cli.stages`)."""

INTERRUPT = "interrupt"
