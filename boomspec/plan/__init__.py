"""Plans of runs: which tasks run and why, how long they take; saved plans, locks, and differences of specs."""
