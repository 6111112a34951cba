"""The command line of the curriculum."""
