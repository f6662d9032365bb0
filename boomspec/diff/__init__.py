"""`boomspec diff`: how two experiments or two runs differ."""
