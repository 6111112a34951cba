"""Sealing: what must not be read by whoever gets hold of a store's files is encrypted before it is stored."""
