"""What the tasks of a graph take before they run: operations, memory, bytes, time. No torch; shapes alone."""
