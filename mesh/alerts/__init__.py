"""Safety alerts at rest: what adults are told of, in Valkey. Both servers use it: one raises them, one erases them."""
