"""Which databases there are, whose models each holds and where it is: yours to change, and the only place that says so."""

from . import catalog, models, orders, reports
from .db.copies import Copy
from .db.databases import Databases, FileSettings, Place

PLACES = (
    Place(name="ledger", models=models.Base, node="n1"),
    Place(name="orders", models=orders.Base, node="n2"),
    Place(name="reports", models=reports.Base, node="n3"),
    Place(name="catalog", models=catalog.Base),
)

COPIES = (Copy(source="orders", table=orders.Order.__table__, target="reports", into=reports.OrderCopy.__table__),)
"""What `{{ package_name }} reports copy` keeps up to date."""

LOG = "orders"
"""The database that keeps the decisions of two-phase commits. One that takes part in most of them saves a commit in each.

Before you name another one, see that `{{ package_name }} twophase list` is empty: a decision that is not found counts as none."""


def open_databases(settings: FileSettings | None = None) -> Databases:
    """The databases of this application, as the settings describe them; nothing connects before it is used."""
    return Databases.from_settings(PLACES, settings or FileSettings(), log=LOG)
