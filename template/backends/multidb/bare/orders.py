"""The database `orders`, yours to fill.

A row that belongs to one of another database stores its key, which no foreign key can enforce: the functions that write
keep the two in step, in one two-phase commit.
"""

from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase

from .models import Base as LedgerBase


class Base(DeclarativeBase):
    """Declares the tables of `orders`."""

    metadata = MetaData(naming_convention=LedgerBase.metadata.naming_convention)
    type_annotation_map = LedgerBase.type_annotation_map
