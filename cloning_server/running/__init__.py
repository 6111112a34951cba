"""One clone from its claim to its final state."""
