"""The database `reports`, yours to replace: copies that may be queried at length, a moment behind what they are copies of.

Nothing here is written by hand: `{{ package_name }} reports copy` brings `customer_order` up to date, and after `{{ package_name }} fdw setup`
the schemas `ledger` and `orders` show the tables of those databases themselves.
"""

from datetime import datetime
from decimal import Decimal

from sqlalchemy import BigInteger, DateTime, MetaData, Numeric, String, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from .db import Key
from .models import Base as LedgerBase


class Base(DeclarativeBase):
    """Declares the tables of `reports`."""

    metadata = MetaData(naming_convention=LedgerBase.metadata.naming_convention)
    type_annotation_map = {
        int: BigInteger,
        Decimal: Numeric(18, 2),
        datetime: DateTime(timezone=True),
    }


class OrderCopy(Base):
    """An order as it was when it was copied last; columns that are not here are not copied."""

    __tablename__ = "customer_order"

    id: Mapped[Key] = mapped_column(primary_key=True, autoincrement=False)
    account_id: Mapped[Key] = mapped_column(index=True)
    sku: Mapped[str] = mapped_column(String(40))
    quantity: Mapped[int]
    amount: Mapped[Decimal]
    placed_at: Mapped[datetime]


def sold(session: Session) -> dict[str, int]:
    """How many of each product were ordered."""
    rows = session.execute(select(OrderCopy.sku, func.sum(OrderCopy.quantity)).group_by(OrderCopy.sku))
    return {sku: int(quantity) for sku, quantity in rows}
