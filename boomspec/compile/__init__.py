"""From a validated experiment to a task graph: what the spec means, the records of its tasks, what they cost."""
