"""What a run would do: which tasks are reused and which run, why, how long it takes; saved plans and locks."""
