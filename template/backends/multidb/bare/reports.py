"""The database `reports`, yours to fill: copies for long queries, a moment behind their sources.

`{{ package_name }} reports sync` fills the copies that databases.py declares. After `{{ package_name }} fdw setup` a
schema for each database on another server shows its tables themselves.
"""

from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase

from .models import Base as LedgerBase


class Base(DeclarativeBase):
    """Declares the tables of `reports`."""

    metadata = MetaData(naming_convention=LedgerBase.metadata.naming_convention)
    type_annotation_map = LedgerBase.type_annotation_map
