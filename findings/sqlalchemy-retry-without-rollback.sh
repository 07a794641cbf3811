#!/bin/sh
# SQLAlchemy 2.0.44. An object that was made outside is stored by nobody when a unit of work is repeated.
#
# A loop around `with Session(...) as session:` is the usual way to repeat a transaction after a serialization failure.
# If an error other than a failed flush or commit ends the block, the session is closed without rollback(). close()
# takes the objects out of the session first and rolls back afterwards, so a flushed object keeps its identity: the
# second session takes it for a stored row, sends no INSERT and commits, without an error or a warning. With
# rollback() before the end of the block it is stored. A change of an object that was stored before is lost in both
# cases: the first attempt has marked it as unchanged (or expired it), and the second one sends no UPDATE.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'sqlalchemy==2.0.44'
cat > "$folder/try.py" <<'PYTHON'
from sqlalchemy import create_engine, delete, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]


engine = create_engine("sqlite://")
Base.metadata.create_all(engine)


def attempt(account, *, fails, rollback):
    with Session(engine, expire_on_commit=False) as session:
        session.add(account)
        session.flush()
        if fails:
            if rollback:
                session.rollback()
            raise TimeoutError
        session.commit()


def run_twice(account, *, rollback):
    try:
        attempt(account, fails=True, rollback=rollback)
    except TimeoutError:
        attempt(account, fails=False, rollback=rollback)
    with Session(engine) as session:
        return session.scalars(select(Account.owner)).all()


for rollback in (True, False):
    print("rollback" if rollback else "close only")
    print("  new:", run_twice(Account(owner="Ada"), rollback=rollback))
    with engine.begin() as connection:
        connection.execute(delete(Account))
    with Session(engine, expire_on_commit=False) as session:
        account = Account(owner="Ada")
        session.add(account)
        session.commit()
    account.owner = "Grace"
    print("  changed:", run_twice(account, rollback=rollback))
    with engine.begin() as connection:
        connection.execute(delete(Account))
PYTHON
"$folder/venv/bin/python" "$folder/try.py" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
rollback
  new: ['Ada']
  changed: ['Ada']
close only
  new: []
  changed: ['Ada']
SEEN
diff "$folder/expected" "$folder/seen"
cat "$folder/seen"
