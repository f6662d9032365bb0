"""The experiments of one spec, compared, as an artifact."""

from runners.tasks.report import run as run
