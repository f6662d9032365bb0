"""The sections of a spec file as pydantic models: every field that may be written below the top level."""
