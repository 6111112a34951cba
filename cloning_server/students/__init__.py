"""A student's data as a whole: erasure and retention."""
