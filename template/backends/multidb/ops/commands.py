"""TODO"""

import typer

copies = typer.Typer()
fdw = typer.Typer()
messages = typer.Typer()
twophase = typer.Typer()
