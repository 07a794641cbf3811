"""Command `walk`: the vendor's tutorial, written as an application would write it."""

import random
import secrets
from decimal import Decimal
from typing import Annotated
from uuid import uuid4

import typer
from rich.progress import track
from sqlalchemy.orm import Session

from .. import bank
from ..db import Database, Key
from ..models import Transfer
from ..settings import Settings
from .console import Debug, configured_urls, errors_as_messages, talk


def open_accounts(session: Session, *, count: int, deposit: Decimal) -> list[Key]:
    """Open accounts with a deposit each, taken from the bank's own account so that the total stays zero."""
    vault = bank.open_account(session, owner="the bank")
    accounts = [bank.open_account(session, owner=f"customer {number + 1}").id for number in range(count)]
    for account in accounts:
        bank.transfer(session, source=vault.id, target=account, amount=deposit, idempotency_key=uuid4())
    return accounts


def move_half(session: Session, *, source: Key, target: Key) -> Transfer | None:
    """Move half of one account's balance to another; return None if half of it is less than a cent.

    The write depends on the read, so SERIALIZABLE makes one of two concurrent calls run again.
    """
    half = (bank.balance(session, source) / 2).quantize(Decimal("0.01"))
    if half <= 0:
        return None
    return bank.transfer(session, source=source, target=target, amount=half, idempotency_key=uuid4())


def walk(
    accounts: Annotated[int, typer.Option(min=2, help="Number of accounts to open.")] = 10,
    moves: Annotated[int, typer.Option(min=0, help="Number of moves.")] = 100,
    seed: Annotated[int | None, typer.Option(help="Seed of an earlier walk, to repeat it.")] = None,
    debug: Debug = False,
) -> None:
    """Open accounts and move half of a balance from one to another, each move in a retried transaction."""
    with errors_as_messages(debug):
        configured_urls()
        chosen = secrets.randbelow(2**32) if seed is None else seed
        rng = random.Random(chosen)  # noqa: S311
        with Database.from_settings(Settings()) as db:
            opened = db.run(open_accounts, count=accounts, deposit=Decimal(1000))
            moved = 0
            for _ in track(range(moves), "moving", console=talk, transient=True, disable=not talk.is_terminal):
                source, target = rng.sample(opened, 2)
                moved += db.run(move_half, source=source, target=target) is not None
            balances = [db.read(bank.balance, account) for account in opened]
            total = db.read(bank.total)
            retries = db.counters.snapshot().get("retries", 0)
        talk.print(
            f"[green]moved[/] {moved} times between {accounts} accounts, {retries} retried: they hold "
            f"{sum(balances)} of {1000 * accounts}, the richest {max(balances)}; all entries sum to {total}; "
            f"seed {chosen}",
            highlight=False,
            soft_wrap=True,
        )
