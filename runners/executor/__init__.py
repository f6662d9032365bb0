"""Running a graph on Ray: choosing the next task, running it in a worker, watching it, showing progress."""
