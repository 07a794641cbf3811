"""The database `catalog`, yours to replace: the products and their stock, in a SQLite file beside the application.

A SQLite file cannot take part in a two-phase commit, so this database receives orders as messages and answers with
messages.
"""

from sqlalchemy import CheckConstraint, ForeignKey, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from .db.outbox import Message, enqueue
from .models import Base as LedgerBase


class Base(DeclarativeBase):
    """Declares the tables of `catalog`."""

    metadata = MetaData(naming_convention=LedgerBase.metadata.naming_convention)


class Product(Base):
    """A product and its stock. Prices are in cents, because SQLite has no exact decimals."""

    __tablename__ = "product"
    __table_args__ = (CheckConstraint("stock >= 0", name="stock_is_not_negative"),)

    sku: Mapped[str] = mapped_column(String(40), primary_key=True)
    title: Mapped[str] = mapped_column(String(200))
    price_cents: Mapped[int]
    stock: Mapped[int]


class Reservation(Base):
    """The part of a stock that is set aside for an order."""

    __tablename__ = "reservation"

    order: Mapped[str] = mapped_column(String(40), primary_key=True)
    """Key of the order in `orders`, as messages carry it."""
    sku: Mapped[str] = mapped_column(ForeignKey("product.sku"))
    quantity: Mapped[int]


def add_product(session: Session, *, sku: str, title: str, price_cents: int, stock: int) -> Product:
    """Add a product and return it."""
    product = Product(sku=sku, title=title, price_cents=price_cents, stock=stock)
    session.add(product)
    session.flush()
    return product


def reserve(session: Session, message: Message) -> None:
    """Receive an order: reserve the goods, or send `orders` a message that the stock is too small."""
    order, sku, quantity = message.payload["order"], message.payload["sku"], message.payload["quantity"]
    product = session.get(Product, sku)
    if product is None or product.stock < quantity:
        enqueue(session, target="orders", topic="sold out", payload={"order": order})
        return
    product.stock -= quantity
    session.add(Reservation(order=order, sku=sku, quantity=quantity))
