"""`boomspec diff`: two sides, what they mean, which tasks that changes, which results moved."""
