"""The sample service, yours to replace: money moves between accounts.

Each function is one unit of work. It takes the session it runs on, and may be called again when the transaction lost a race:
so it does only what a rollback undoes, and leaves committing to who calls it.

    db.run(bank.open_account, owner="Ada")
    db.options(key=source, idempotent=True).run(bank.transfer, source=source, target=target, amount=…, idempotency_key=…)
"""

from collections.abc import Sequence
from decimal import Decimal
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from .db import Key
from .models import Account, Entry, Transfer


class BankError(Exception):
    """Base of what this service refuses."""


class UnknownAccount(BankError):
    """No such account on this node; one opened elsewhere a moment ago may still be on its way."""


class KeyReused(BankError):
    """The idempotency key belongs to a transfer of something else."""


def open_account(session: Session, *, owner: str) -> Account:
    """Open an account with nothing on it."""
    account = Account(owner=owner)
    session.add(account)
    session.flush()
    return account


def transfer(session: Session, *, source: Key, target: Key, amount: Decimal, idempotency_key: UUID) -> Transfer:
    """Move `amount` from `source` to `target`, once per idempotency key.

    Route it by `source`: requests with the same key then meet on the same node, where the second waits for the first at the
    lock on the account and finds its transfer.

    Raises:
        UnknownAccount: one of the accounts is not there.
        KeyReused: the key was used for another transfer.
        ValueError: the amount is not positive, or both accounts are the same.
    """
    if amount <= 0:
        raise ValueError(f"an amount is positive, not {amount}")
    if source == target:
        raise ValueError("source and target are the same account")
    if session.scalar(select(Account.id).where(Account.id == source).with_for_update()) is None:
        raise UnknownAccount(f"there is no account {source}")
    if session.get(Account, target) is None:
        raise UnknownAccount(f"there is no account {target}")
    made = session.scalar(
        select(Transfer).where(Transfer.idempotency_key == idempotency_key).options(selectinload(Transfer.entries))
    )
    if made is not None:
        if {(entry.account_id, entry.amount) for entry in made.entries} != {(source, -amount), (target, amount)}:
            raise KeyReused(f"the idempotency key {idempotency_key} belongs to another transfer")
        return made
    made = Transfer(
        idempotency_key=idempotency_key,
        entries=[Entry(account_id=source, amount=-amount), Entry(account_id=target, amount=amount)],
    )
    session.add(made)
    session.flush()
    return made


def balance(session: Session, account_id: Key) -> Decimal:
    """The sum of an account's entries that this node has seen."""
    return session.scalar(select(func.sum(Entry.amount)).where(Entry.account_id == account_id)) or Decimal(0)


def statement(session: Session, account_id: Key) -> Sequence[Entry]:
    """An account's entries, oldest first."""
    return session.scalars(
        select(Entry).join(Entry.transfer).where(Entry.account_id == account_id).order_by(Transfer.made_at, Entry.id)
    ).all()


def total(session: Session) -> Decimal:
    """The sum of all entries: zero, always, or money was made or lost."""
    return session.scalar(select(func.sum(Entry.amount))) or Decimal(0)
