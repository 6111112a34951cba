"""Adapters at rest: names, manifests, the store."""
