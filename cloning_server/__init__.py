"""The cloning server: makes each student's adapter out of a baseline assessment."""
