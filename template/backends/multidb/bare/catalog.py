"""The database `catalog`, yours to fill: a SQLite file beside the application.

A SQLite file cannot take part in a two-phase commit, so this database receives changes as messages and answers with
messages.
"""

from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase

from .models import Base as LedgerBase


class Base(DeclarativeBase):
    """Declares the tables of `catalog`."""

    metadata = MetaData(naming_convention=LedgerBase.metadata.naming_convention)
