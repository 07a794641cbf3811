"""The databases of this application: the models and the place of each, yours to change, and stated only here."""

from . import catalog, models, orders, reports
from .db.databases import Databases, DatabaseSpec
from .db.outbox import Receivers
from .db.table_sync import TableSync
from .settings import Settings

DATABASES = (
    DatabaseSpec(name="ledger", models=models.Base, node="n1"),
    DatabaseSpec(name="orders", models=orders.Base, node="n2"),
    DatabaseSpec(name="reports", models=reports.Base, node="n3"),
    DatabaseSpec(name="catalog", models=catalog.Base),
)

DECISION_LOG = "orders"
"""Database that keeps the decisions of two-phase commits. One that takes part in most of them saves a commit in each.

Before you name another one, make sure that `{{ package_name }} twophase list` is empty: recovery rolls back every
transaction whose decision is not in the log.
"""

TABLE_SYNCS = (
    TableSync(source="orders", table=orders.Order.__table__, target="reports", into=reports.OrderCopy.__table__),
)
"""Tables that `{{ package_name }} reports sync` keeps up to date."""

OUTBOXES = ("catalog", "orders")
"""Databases with an outbox and an inbox, for messages between them."""

RECEIVERS: Receivers = {
    ("catalog", "order placed"): catalog.reserve,
    ("orders", "sold out"): orders.mark_sold_out,
}
"""Receiver of each message, by target and topic."""


def open_databases(settings: Settings | None = None) -> Databases:
    """Prepare the databases of this application; nothing connects before it is used.

    Args:
        settings: None: those of the environment.
    """
    return Databases.from_settings(DATABASES, settings or Settings(), decision_log=DECISION_LOG)
