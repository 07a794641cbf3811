"""Tables that the rows write to, on the node that is alone."""

import functools
from types import SimpleNamespace
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Engine, Identity, Sequence, create_engine, insert, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.ground import Project

ACCOUNTS = 10_000
"""Number of rows in the table of balances, enough that the planner uses the index."""


@functools.cache
def tables(project: Project) -> Any:
    """Create the tables; return their models and a plain engine.

    `Ours` has the project's key, `Textbook` the column that tutorials show, `Plain` an identity; the other
    columns are the same.
    """
    keyed = project.module("db").PrimaryKeyMixin

    class Base(DeclarativeBase):
        type_annotation_map: ClassVar = {int: BigInteger}

    class Columns:
        name: Mapped[str]
        value: Mapped[int]

    class Ours(Columns, keyed, Base):  # type: ignore[misc, valid-type]
        __tablename__ = "bench_ours"

    class Textbook(Columns, Base):
        __tablename__ = "bench_textbook"
        id: Mapped[int] = mapped_column(
            primary_key=True, server_default=text("snowflake.nextval('bench_textbook_id_seq'::regclass)")
        )

    Sequence("bench_textbook_id_seq", metadata=Base.metadata, data_type=BigInteger)

    class Plain(Columns, Base):
        __tablename__ = "bench_plain"
        id: Mapped[int] = mapped_column(Identity(), primary_key=True)

    class Balance(Base):
        __tablename__ = "bench_balance"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        amount: Mapped[int]

    engine = create_engine(project.url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(
            insert(Balance), [{"id": number, "amount": 1000} for number in range(1, ACCOUNTS + 1)]
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE bench_balance"))
    return SimpleNamespace(Ours=Ours, Textbook=Textbook, Plain=Plain, Balance=Balance, engine=engine)


def empty(engine: Engine, model: Any) -> None:
    """Delete all rows of a table, so that every round starts alike."""
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {model.__tablename__}"))
