"""Functions that concern several databases, yours to replace: written the way the rest of yours should be.

    databases = open_databases()
    order = databases.run("orders", orders.place, account_id=…, sku="A-1", quantity=1, amount=…)
    databases.two_phase("ledger", "orders").run(sales.pay, order_id=order.id, till=…)
    outbox.relay(databases, "orders", RECEIVERS)

Each function takes a session for each database and leaves committing to its caller.
"""

from collections.abc import Iterator
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.orm import Session

from . import bank
from .db import Key
from .db.databases import Databases
from .db.mergejoin import merge_join, ordered
from .models import Account
from .orders import Order, Payment


def pay(ledger: Session, orders: Session, *, order_id: Key, till: Key) -> Payment:
    """Move the money in `ledger` and record the payment in `orders`; an order that is paid stays as it is.

    Run it through `two_phase`: the payment without the money, or the money without the payment, would be a loss.

    Raises:
        NoResultFound: there is no such order.
        UnknownAccount: the customer or the till has no account.
    """
    order = orders.get_one(Order, order_id, with_for_update={"key_share": True})
    paid = orders.scalar(select(Payment).where(Payment.order_id == order_id))
    if paid is not None:
        return paid
    bank.transfer(ledger, source=order.account_id, target=till, amount=order.amount, idempotency_key=order.payment_key)
    payment = Payment(order_id=order_id, amount=order.amount)
    orders.add(payment)
    orders.flush()
    return payment


def orders_with_owners(databases: Databases) -> Iterator[tuple[str, Key, Decimal]]:
    """Yield the owner, key and amount of every order, joined over two databases in bounded memory."""
    with databases.snapshot("ledger") as ledger, databases.snapshot("orders") as placed:
        owners = ordered(ledger, select(Account.id, Account.owner), by=Account.id)
        amounts = ordered(placed, select(Order.account_id, Order.id, Order.amount), by=Order.account_id)
        for (_, owner), (_, order, amount) in merge_join(owners, amounts):
            yield owner, order, amount
