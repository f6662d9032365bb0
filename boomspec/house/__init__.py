"""The runs of a store: listing them, and getting rid of what none needs."""
