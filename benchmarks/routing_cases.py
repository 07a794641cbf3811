"""Sixteen cases of everyday code in a transaction, each of which belongs on the node that writes.

A case is right if nothing failed, it saw its own writes, and every statement used one connection to the
preferred node.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

from sqlalchemy import Delete, Engine, Update, cast, create_engine, event, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import REGCLASS
from sqlalchemy.orm import Session

from benchmarks.ground import Project, administration

RIGHT = "right"
HOME, READER = "n1", "n3"

Case: TypeAlias = Callable[[Session, Any, int], bool]
OpenSession: TypeAlias = Callable[[], AbstractContextManager[Session]]

WRITING_FUNCTION = """
    CREATE OR REPLACE FUNCTION bench_open() RETURNS bigint LANGUAGE sql VOLATILE
    AS $$ INSERT INTO account (owner) VALUES ('by a function') RETURNING id $$
"""


@contextmanager
def database_session(project: Project) -> Iterator[OpenSession]:
    """Yield the factory of sessions on the project's `Database`."""
    with project.database(project.cluster.urls(), preferred_node=HOME) as db:
        yield db.session


@contextmanager
def tutorial_session(project: Project) -> Iterator[OpenSession]:
    """Yield a factory of sessions that choose an engine per statement, as in SQLAlchemy's manual."""
    urls = project.cluster.urls()
    leader, follower = create_engine(urls[HOME]), create_engine(urls[READER])

    class RoutingSession(Session):
        def get_bind(self, mapper: Any = None, *, clause: Any = None, **_: Any) -> Engine:
            del mapper
            if self._flushing or isinstance(clause, Update | Delete):
                return leader
            return follower

    @contextmanager
    def session() -> Iterator[Session]:
        with RoutingSession() as opened, opened.begin():
            yield opened

    yield session
    leader.dispose()
    follower.dispose()


def run(
    project: Project, sessions: Callable[[Project], AbstractContextManager[OpenSession]]
) -> dict[str, str]:
    """Run every case in a transaction of its own; return the outcome of each."""
    account = project.module("models").Account
    for url in project.cluster.admin_urls().values():
        with administration(url) as execute:
            execute(WRITING_FUNCTION)
    ports = {url.port: name for name, url in project.cluster.urls().items()}
    with (
        sessions(project) as open_session,
        project.database(project.cluster.urls(), preferred_node=HOME) as db,
    ):
        with db.session() as session:
            known = account(owner="known")
            session.add(known)
        return {name: _outcome(case, open_session, account, known.id, ports) for name, case in CASES.items()}


def _outcome(
    case: Case, open_session: OpenSession, account: Any, known: int, ports: Mapping[int | None, str]
) -> str:
    seen: list[tuple[str, int]] = []

    def note(connection: Any, *_: object) -> None:
        seen.append((ports[connection.engine.url.port], id(connection.connection.dbapi_connection)))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        with open_session() as session:
            correct = case(session, account, known)
    except Exception as error:
        return type(error).__name__
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    if astray := sorted({node for node, _ in seen} - {HOME}):
        return f"on {' and '.join(astray)}"
    if len(set(seen)) != 1:
        return f"{len(set(seen))} connections in one transaction"
    return RIGHT if correct else "did not see its own write"


def _insert(session: Session, account: Any, _: int) -> bool:
    return session.scalar(insert(account).values(owner="insert").returning(account.id)) is not None


def _text_update(session: Session, _: Any, known: int) -> bool:
    return bool(session.execute(text("UPDATE account SET owner = 'text' WHERE id = :id"), {"id": known}))


def _cte_insert(session: Session, _: Any, __: int) -> bool:
    made = "WITH made AS (INSERT INTO account (owner) VALUES ('cte') RETURNING id) SELECT id FROM made"
    return session.scalar(text(made)) is not None


def _add_cte(session: Session, account: Any, known: int) -> bool:
    made = insert(account).values(owner="add_cte").cte("made")
    return session.scalar(select(account.id).where(account.id == known).add_cte(made)) is not None


def _for_update(session: Session, account: Any, known: int) -> bool:
    return session.scalar(select(account).where(account.id == known).with_for_update()) is not None


def _get_for_update(session: Session, account: Any, known: int) -> bool:
    return session.get(account, known, with_for_update=True) is not None


def _ryw_core(session: Session, account: Any, known: int) -> bool:
    session.execute(update(account).where(account.id == known).values(owner="my own write"))
    return session.scalar(select(account.owner).where(account.id == known)) == "my own write"


def _ryw_orm(session: Session, account: Any, _: int) -> bool:
    made = account(owner="my own object")
    session.add(made)
    session.flush()
    return session.scalar(select(account.owner).where(account.id == made.id)) == "my own object"


def _refresh(session: Session, account: Any, _: int) -> bool:
    made = account(owner="refresh")
    session.add(made)
    session.flush()
    session.refresh(made)
    return made.opened_at is not None


def _expire_lazy(session: Session, account: Any, _: int) -> bool:
    made = account(owner="expire")
    session.add(made)
    session.flush()
    session.expire(made)
    return bool(made.owner == "expire")


def _connection(session: Session, account: Any, _: int) -> bool:
    return bool(session.connection().execute(insert(account).values(owner="connection")))


def _sidefx_fn(session: Session, _: Any, __: int) -> bool:
    return session.scalar(select(func.bench_open())) is not None


def _func_nextval(session: Session, _: Any, __: int) -> bool:
    return session.scalar(select(func.snowflake.nextval(cast("account_id_seq", REGCLASS)))) is not None


def _bulk_save(session: Session, account: Any, _: int) -> bool:
    session.bulk_save_objects([account(owner="bulk") for _ in range(3)])
    return True


def _orm_bulk(session: Session, account: Any, _: int) -> bool:
    session.execute(insert(account), [{"owner": "orm bulk"} for _ in range(3)])
    return True


def _values_in_two(session: Session, account: Any, known: int) -> bool:
    read = session.scalar(select(account.owner).where(account.id == known))
    session.add(account(owner="second"))
    session.flush()
    return read is not None


CASES: Mapping[str, Case] = {
    "insert": _insert,
    "text_update": _text_update,
    "cte_insert": _cte_insert,
    "add_cte": _add_cte,
    "for_update": _for_update,
    "get_for_update": _get_for_update,
    "ryw_core": _ryw_core,
    "ryw_orm": _ryw_orm,
    "refresh": _refresh,
    "expire_lazy": _expire_lazy,
    "connection": _connection,
    "sidefx_fn": _sidefx_fn,
    "func_nextval": _func_nextval,
    "bulk_save": _bulk_save,
    "orm_bulk": _orm_bulk,
    "values_in_two": _values_in_two,
}
