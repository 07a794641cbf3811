"""One way to join two databases, in a process of its own: by how much it grows, and how long it takes.

Run by `several.py`.
"""

import importlib
import json
import os
import sys
import time
from decimal import Decimal
from typing import Any

from sqlalchemy import Numeric, create_engine, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.bulk_memory import peak
from benchmarks.several import customer, purchase


class Base(DeclarativeBase):
    """Base of the models that the tutorials load."""


class Customer(Base):
    """A customer."""

    __tablename__ = "bench_customer"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Purchase(Base):
    """A purchase of a customer."""

    __tablename__ = "bench_purchase"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int]
    amount: Mapped[Decimal] = mapped_column(Numeric(18, 2))


def ours(package: str, urls: dict[str, str]) -> tuple[int, Decimal]:
    """Join with the streaming merge join of the project."""
    application: Any = importlib.import_module(f"{package}.databases")
    databases: Any = importlib.import_module(f"{package}.db.databases")
    join: Any = importlib.import_module(f"{package}.db.mergejoin")
    nodes = {node: make_url(url) for node, url in urls.items()}
    with (
        databases.Databases(application.DATABASES, nodes, decision_log=application.DECISION_LOG) as db,
        db.snapshot("ledger") as one,
        db.snapshot("orders") as other,
    ):
        left = join.ordered(one, select(customer.c.id, customer.c.name), by=customer.c.id)
        right = join.ordered(
            other, select(purchase.c.customer_id, purchase.c.amount), by=purchase.c.customer_id
        )
        count, total = 0, Decimal(0)
        for _, (_, amount) in join.merge_join(left, right):
            count += 1
            total += amount
        return count, total


def loaded(_package: str, urls: dict[str, str]) -> tuple[int, Decimal]:
    """Join two lists of objects by a list comprehension over a dictionary: nested loops would not end."""
    with Session(create_engine(urls["n1"])) as one, Session(create_engine(urls["n2"])) as other:
        customers = {found.id: found for found in one.scalars(select(Customer))}
        purchases = other.scalars(select(Purchase)).all()
        pairs = [
            (customers[bought.customer_id], bought) for bought in purchases if bought.customer_id in customers
        ]
        return len(pairs), sum((bought.amount for _, bought in pairs), Decimal(0))


def foreign(_package: str, urls: dict[str, str]) -> tuple[int, Decimal]:
    """Join foreign tables in the reporting database, and read the rows through a cursor as `ours` does."""
    query = text(
        "SELECT c.id, c.name, p.customer_id, p.amount "
        "FROM ledger.bench_customer c JOIN orders.bench_purchase p ON p.customer_id = c.id"
    )
    with create_engine(urls["n3"]).connect() as connection:
        count, total = 0, Decimal(0)
        for row in connection.execution_options(yield_per=2000).execute(query):
            count += 1
            total += row.amount
        return count, total


if __name__ == "__main__":
    way = {"ours": ours, "loaded": loaded, "foreign": foreign}[sys.argv[2]]
    addresses = json.loads(os.environ["BENCH_URLS"])
    importlib.import_module(f"{sys.argv[1]}.databases")
    for address in addresses.values():
        # Drivers and dialects are loaded before anything counts.
        with create_engine(address).connect() as first:
            first.execute(text("SELECT 1"))
    before, started = peak(), time.perf_counter()
    pairs, amount = way(sys.argv[1], addresses)
    took = time.perf_counter() - started
    print(json.dumps({"grown": peak() - before, "seconds": took, "pairs": pairs, "amount": str(amount)}))
