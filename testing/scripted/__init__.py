"""Servers, an engine, a brain and a trainer that follow a script."""
