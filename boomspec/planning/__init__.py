"""Plans for people and programs: reasons, order, saved plans."""
