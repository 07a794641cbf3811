"""Commands that only this backend has: the walk of the vendor's tutorial, as a program of one's own would do it."""

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
from .console import Debug, configured_urls, explained, talk


def open_accounts(session: Session, *, count: int, deposit: Decimal) -> list[Key]:
    """Open accounts with something on them: it comes from an account of the bank's, so that the total stays zero."""
    vault = bank.open_account(session, owner="the bank")
    accounts = [bank.open_account(session, owner=f"customer {number + 1}").id for number in range(count)]
    for account in accounts:
        bank.transfer(session, source=vault.id, target=account, amount=deposit, idempotency_key=uuid4())
    return accounts


def move_half(session: Session, *, source: Key, target: Key) -> Transfer | None:
    """Move half of what one account has to another; None if half of it is less than a cent.

    What is read here decides what is written. Somebody who changes it meanwhile is noticed, and one of the two runs again.
    """
    half = (bank.balance(session, source) / 2).quantize(Decimal("0.01"))
    if half <= 0:
        return None
    return bank.transfer(session, source=source, target=target, amount=half, idempotency_key=uuid4())


def walk(
    accounts: Annotated[int, typer.Option(min=2, help="How many accounts to open.")] = 10,
    moves: Annotated[int, typer.Option(min=0, help="How often to move half of one's money to another.")] = 100,
    seed: Annotated[int | None, typer.Option(help="Repeat a walk that had this seed.")] = None,
    debug: Debug = False,
) -> None:
    """Open accounts, and move half of one's money to another, as often as you like: each a retried unit of work."""
    with explained(debug):
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
            f"[green]moved[/] {moved} times between {accounts} accounts, {retries} retried: they hold {sum(balances)} of "
            f"{1000 * accounts}, the richest {max(balances)}; all entries sum to {total}; seed {chosen}",
            highlight=False,
            soft_wrap=True,
        )
