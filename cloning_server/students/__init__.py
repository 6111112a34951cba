"""A student's data as a whole: erasure, retention and export."""
