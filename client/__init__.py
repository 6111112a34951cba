"""A Python client of both servers, and the `aivo` command."""
