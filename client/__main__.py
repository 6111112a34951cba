"""`python -m client` is `aivo`."""

from client.cli import app

app(prog_name="aivo")
