"""The spec language: its sections, their fields, and the JSON Schema of it all."""
