"""The databases of all tenants, behind one object.

    db = Tenants.from_settings(Settings())

    db.using(tenant="acme").run(open_account, owner="Ada")   # as `Database.run`, in the database of acme
    with db.session(tenant="acme") as session: ...                  # one transaction, not retried
    with use_tenant("acme"):                                        # around a web request:
        db.run(open_account, owner="Ada")                           # in the database of the current tenant
    for tenant, row in db.query(select(Account)): ...               # all tenants, streamed
    bulk_load(db.of("acme"), Account, rows)                         # `db.of` returns one tenant's database

A tenant's place is looked up on first use and remembered; a tenant that moves is followed.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar, Unpack

from sqlalchemy import Executable

from ..backend import RouteOptions
from ..database import Database
from ..session import PinnedSession
from .core import TenantsCore
from .workers import Answers, Workers

T = TypeVar("T")


class Tenants(TenantsCore, Database):
    """Sessions and transactions in the databases of all tenants. Thread-safe; make one per process.

    Beside the errors of `Database`, work raises `UnknownTenant`, `TenantSuspended`, and `MisuseError` if neither
    `tenant` nor `use_tenant` names its tenant.
    """

    _database_class = Database
    _workers = Workers()

    def dispose(self) -> None:
        """Close every pooled connection, at the end of the process; a forked child has new ones anyway."""
        self._close()

    @contextmanager
    def session(
        self, *, tenant: str | None = None, readonly: bool = False, **options: Unpack[RouteOptions]
    ) -> Iterator[PinnedSession]:
        """Open one transaction in the database of `tenant`, as `Database.session`."""
        with Database.session(self.using(tenant=tenant), readonly=readonly, **options) as session:
            yield session

    def names(self) -> list[str]:
        """Return the tenants that are served, in order."""
        return self._registry.active()

    def each(
        self, work: Callable[[PinnedSession], T], *, tenants: Iterable[str] | None = None, at_once: int = 8
    ) -> Generator[tuple[str, T], None, None]:
        """Yield each tenant's name and the result of `work(session)`, in the order in which the tenants finish.

        Args:
            work: function of a read-only session, as for `read`.
            tenants: names of the tenants; None: all that are served.
            at_once: number of tenants that are asked at the same time.

        Raises:
            SomeTenantsFailed: at the end, if a tenant failed; the answers of the others came before.
        """
        return _flattened(self._each(work, tenants, at_once))

    def query(
        self, statement: Executable, *, tenants: Iterable[str] | None = None, at_once: int = 8
    ) -> Generator[tuple[str, Any], None, None]:
        """Yield the rows of a query over all tenants as they arrive, each with its tenant's name before it.

        Memory holds a few chunks of rows, however many there are. The rows of one tenant come in the order of the
        statement and from one snapshot; between tenants there is no order.

        Args:
            statement: a SELECT.
            tenants: names of the tenants; None: all that are served.
            at_once: number of tenants that are asked at the same time.

        Raises:
            SomeTenantsFailed: at the end, if a tenant failed; the rows of the others, and some of its own, came before.
        """
        # `Any`, because SQLAlchemy 2.0 and 2.1 write the type of a `Row` in ways that exclude each other.
        return _flattened(self._query(statement, tenants, at_once))


def _flattened(chunks: Answers[T]) -> Generator[tuple[str, T], None, None]:
    with closing(chunks):
        for name, answers in chunks:
            for answer in answers:
                yield name, answer
