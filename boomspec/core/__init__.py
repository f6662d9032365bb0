"""Plain values that everything else is made of: errors, identity, layers, losses, task records, the task graph."""
