"""Benchmarks of speed and quality: each figure next to its target, and next to a baseline from the same run."""
