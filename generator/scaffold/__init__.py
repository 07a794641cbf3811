"""Generate applications on distributed SQL; `scaffold --help` lists the commands."""

__version__ = "0.1.0"
