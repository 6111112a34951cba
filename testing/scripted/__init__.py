"""Servers, engine, brain and trainer that follow a script."""
