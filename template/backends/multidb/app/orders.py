"""The database `orders`, yours to replace: who ordered what, and what was paid.

An order names its customer by the key of an account in another database. No foreign key can hold that, so it is held by whoever
writes: `sales.pay` moves the money and notes the payment in one two-phase commit.
"""

from datetime import datetime
from decimal import Decimal
from uuid import UUID, uuid4

from sqlalchemy import BigInteger, DateTime, ForeignKey, MetaData, Numeric, String, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from .db import Key, PrimaryKeyMixin
from .db.changes import Changing
from .db.outbox import Message, put
from .models import Base as LedgerBase


class Base(DeclarativeBase):
    """Declares the tables of `orders`."""

    metadata = MetaData(naming_convention=LedgerBase.metadata.naming_convention)
    type_annotation_map = {
        int: BigInteger,
        Decimal: Numeric(18, 2),
        datetime: DateTime(timezone=True),
    }


class Order(PrimaryKeyMixin, Changing, Base):
    """What a customer ordered. Copied into `reports`, so each row knows the transaction that changed it last."""

    __tablename__ = "customer_order"

    account_id: Mapped[Key]
    """The customer's account in `ledger`."""
    sku: Mapped[str] = mapped_column(String(40))
    """The product's key in `catalog`."""
    quantity: Mapped[int]
    amount: Mapped[Decimal]
    payment_key: Mapped[UUID] = mapped_column(default=uuid4)
    """The idempotency key of its payment, in both databases."""
    sold_out: Mapped[bool] = mapped_column(default=False)
    placed_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Payment(PrimaryKeyMixin, Base):
    """That an order is paid, once."""

    __tablename__ = "payment"

    order_id: Mapped[Key] = mapped_column(ForeignKey("customer_order.id"), unique=True)
    amount: Mapped[Decimal]
    paid_at: Mapped[datetime] = mapped_column(server_default=func.now())


def place(session: Session, *, account_id: Key, sku: str, quantity: int, amount: Decimal) -> Order:
    """Place an order, and tell `catalog` of it.

    Raises:
        ValueError: the quantity or the amount is not positive.
    """
    if quantity <= 0 or amount <= 0:
        raise ValueError(f"an order has a positive quantity and amount, not {quantity} and {amount}")
    order = Order(account_id=account_id, sku=sku, quantity=quantity, amount=amount)
    session.add(order)
    session.flush()
    message = {"order": str(order.id), "sku": sku, "quantity": quantity}
    put(session, target="catalog", topic="order placed", payload=message)
    return order


def mark_sold_out(session: Session, message: Message) -> None:
    """Receive from `catalog` that there was not enough of it."""
    order = session.get_one(Order, UUID(message.payload["order"]))
    order.sold_out = True


def takings(session: Session) -> Decimal:
    """What all payments come to."""
    return session.scalar(select(func.sum(Payment.amount))) or Decimal(0)
