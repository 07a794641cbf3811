"""`python -m` for where the console script is not on PATH."""

from .ops.cli import app

app()
