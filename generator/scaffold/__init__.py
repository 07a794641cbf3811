"""Generates applications on distributed SQL; `scaffold --help` says how."""

__version__ = "0.1.0"
