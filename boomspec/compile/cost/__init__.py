"""What tasks take before they run: operations, memory, bytes. Computed from shapes alone, without torch."""
