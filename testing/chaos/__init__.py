"""A whole AIVO under strikes, and what must hold afterwards."""
