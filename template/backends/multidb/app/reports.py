"""The database `reports`, yours to replace: copies for long queries, a moment behind their sources.

`{{ package_name }} reports sync` fills `customer_order`. After `{{ package_name }} fdw setup` the schemas `ledger` and
`orders` show the tables of those databases themselves.
"""

from datetime import datetime
from decimal import Decimal

from sqlalchemy import MetaData, String, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from .db import Key
from .models import Base as LedgerBase


class Base(DeclarativeBase):
    """Declares the tables of `reports`."""

    metadata = MetaData(naming_convention=LedgerBase.metadata.naming_convention)
    type_annotation_map = LedgerBase.type_annotation_map


class OrderCopy(Base):
    """An order as of the last sync, with the columns that are declared here."""

    __tablename__ = "customer_order"

    id: Mapped[Key] = mapped_column(primary_key=True, autoincrement=False)
    account_id: Mapped[Key] = mapped_column(index=True)
    sku: Mapped[str] = mapped_column(String(40))
    quantity: Mapped[int]
    amount: Mapped[Decimal]
    placed_at: Mapped[datetime]


def sold(session: Session) -> dict[str, int]:
    """Return the quantity ordered of each product."""
    rows = session.execute(select(OrderCopy.sku, func.sum(OrderCopy.quantity)).group_by(OrderCopy.sku))
    return {sku: int(quantity) for sku, quantity in rows}
