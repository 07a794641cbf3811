"""The database `orders`, yours to replace: the orders of customers and their payments.

An order names its customer by the key of an account in another database, which no foreign key can enforce. The
functions that write keep the two in step: `sales.pay` moves the money and records the payment in one two-phase commit.
"""

from datetime import datetime
from decimal import Decimal
from uuid import UUID, uuid4

from sqlalchemy import ForeignKey, MetaData, String, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from .db import Key, PrimaryKeyMixin
from .db.outbox import Message, enqueue
from .db.table_sync import ChangeTrackingMixin
from .models import Base as LedgerBase


class Base(DeclarativeBase):
    """Declares the tables of `orders`."""

    metadata = MetaData(naming_convention=LedgerBase.metadata.naming_convention)
    type_annotation_map = LedgerBase.type_annotation_map


class Order(PrimaryKeyMixin, ChangeTrackingMixin, Base):
    """An order of a customer. Its changes are tracked, because `reports` keeps a copy."""

    __tablename__ = "customer_order"

    account_id: Mapped[Key]
    """Account of the customer in `ledger`."""
    sku: Mapped[str] = mapped_column(String(40))
    """Key of the product in `catalog`."""
    quantity: Mapped[int]
    amount: Mapped[Decimal]
    payment_key: Mapped[UUID] = mapped_column(default=uuid4)
    """Idempotency key of the payment in both databases."""
    sold_out: Mapped[bool] = mapped_column(default=False)
    placed_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Payment(PrimaryKeyMixin, Base):
    """The payment of an order; an order has at most one."""

    __tablename__ = "payment"

    order_id: Mapped[Key] = mapped_column(ForeignKey("customer_order.id"), unique=True)
    amount: Mapped[Decimal]
    paid_at: Mapped[datetime] = mapped_column(server_default=func.now())


def place(session: Session, *, account_id: Key, sku: str, quantity: int, amount: Decimal) -> Order:
    """Place an order, send it to `catalog` as a message, and return it.

    Raises:
        ValueError: the quantity or the amount is not positive.
    """
    if quantity <= 0 or amount <= 0:
        raise ValueError(f"an order has a positive quantity and amount, not {quantity} and {amount}")
    order = Order(account_id=account_id, sku=sku, quantity=quantity, amount=amount)
    session.add(order)
    session.flush()
    payload = {"order": str(order.id), "sku": sku, "quantity": quantity}
    enqueue(session, target="catalog", topic="order placed", payload=payload)
    return order


def mark_sold_out(session: Session, message: Message) -> None:
    """Receive from `catalog` that its stock is too small for an order."""
    order = session.get_one(Order, UUID(message.payload["order"]))
    order.sold_out = True


def takings(session: Session) -> Decimal:
    """Return the sum of all payments."""
    return session.scalar(select(func.sum(Payment.amount))) or Decimal(0)
