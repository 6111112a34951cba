"""Trains the roles of a Main Brain. A command line; nobody imports it."""
