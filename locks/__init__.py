"""Locks of dependencies: what writes them, and what compares them with pyproject.toml."""
