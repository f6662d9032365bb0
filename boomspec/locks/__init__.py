"""Locks: what the names in a spec stood for."""
