"""The database `catalog`, yours to replace: what is for sale, in a SQLite file beside the application.

It learns of orders by message, for it can take part in no commit but its own, and answers in the same way.
"""

from sqlalchemy import CheckConstraint, ForeignKey, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from .db.outbox import Message, put
from .models import Base as LedgerBase


class Base(DeclarativeBase):
    """Declares the tables of `catalog`."""

    metadata = MetaData(naming_convention=LedgerBase.metadata.naming_convention)


class Product(Base):
    """Something for sale. Its price is in cents: SQLite has no exact decimals."""

    __tablename__ = "product"
    __table_args__ = (CheckConstraint("stock >= 0", name="stock_is_not_negative"),)

    sku: Mapped[str] = mapped_column(String(40), primary_key=True)
    title: Mapped[str] = mapped_column(String(200))
    price_cents: Mapped[int]
    stock: Mapped[int]


class Reservation(Base):
    """What of the stock is an order's."""

    __tablename__ = "reservation"

    order: Mapped[str] = mapped_column(String(40), primary_key=True)
    """The order's key, as it is written in a message."""
    sku: Mapped[str] = mapped_column(ForeignKey("product.sku"))
    quantity: Mapped[int]


def add_product(session: Session, *, sku: str, title: str, price_cents: int, stock: int) -> Product:
    """Put something on sale."""
    product = Product(sku=sku, title=title, price_cents=price_cents, stock=stock)
    session.add(product)
    session.flush()
    return product


def reserve(session: Session, message: Message) -> None:
    """Receive an order: take it from the stock, or tell `orders` that there is not enough."""
    order, sku, quantity = message.payload["order"], message.payload["sku"], message.payload["quantity"]
    product = session.get(Product, sku)
    if product is None or product.stock < quantity:
        put(session, target="orders", topic="sold out", payload={"order": order})
        return
    product.stock -= quantity
    session.add(Reservation(order=order, sku=sku, quantity=quantity))
