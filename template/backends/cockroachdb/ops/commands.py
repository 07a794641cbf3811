"""Command `walk`: the vendor's tutorial, written as an application would write it, on tables of its own."""

import random
import secrets
from typing import Annotated

import typer
from rich.progress import track
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..settings import Settings
from .console import operations_urls, talk

DEPOSIT = 1000
"""Balance with which each account begins."""


def walk(
    accounts: Annotated[int, typer.Option(min=2, help="Number of accounts to open.")] = 10,
    moves: Annotated[int, typer.Option(min=0, help="Number of moves.")] = 100,
    seed: Annotated[int | None, typer.Option(help="Seed of an earlier walk, to repeat it.")] = None,
) -> None:
    """Open accounts and move half of a balance from one to another, each move in a retried transaction."""
    # Imported here: it needs Alembic, which would slow down all other commands.
    from .verify import CheckContext
    from .verify.scratch import Entry

    total = select(func.coalesce(func.sum(Entry.amount), 0))

    def balance(session: Session, account: str) -> int:
        return session.scalar(total.where(Entry.owner == account)) or 0

    def transfer(session: Session, *, source: str, target: str, amount: int) -> None:
        session.add_all([Entry(owner=source, amount=-amount), Entry(owner=target, amount=amount)])

    def move_half(session: Session, *, source: str, target: str) -> bool:
        # The write depends on the read, so SERIALIZABLE makes one of two concurrent calls run again.
        if half := balance(session, source) // 2:
            transfer(session, source=source, target=target, amount=half)
        return half > 0

    chosen = secrets.randbelow(2**32) if seed is None else seed
    rng = random.Random(chosen)  # noqa: S311
    urls, pooler = operations_urls(), Settings().transaction_pooler
    context = CheckContext(urls.application, urls.admin, chosen, owner_urls=urls.owner, transaction_pooler=pooler)
    with context.alone(), context.topology() as topology:
        scratch = context.scratch
        try:
            db = scratch.database
            opened = [f"account {number}" for number in range(accounts)]
            for account in opened:
                db.run(transfer, source="vault", target=account, amount=DEPOSIT)
            moved = 0
            for _ in track(range(moves), "moving", console=talk, transient=True, disable=not talk.is_terminal):
                source, target = rng.sample(opened, 2)
                moved += db.run(move_half, source=source, target=target)
            balances = [db.read(balance, account) for account in opened]
            rest = db.read(lambda session: session.scalar(total))
            retries = db.counters.snapshot().get("retries", 0)
        finally:
            scratch.drop(topology)
    talk.print(
        f"[green]moved[/] {moved} times between {accounts} accounts, {retries} retried: they hold "
        f"{sum(balances)} of {DEPOSIT * accounts}, the richest {max(balances)}; all entries sum to {rest}; "
        f"seed {chosen}",
        soft_wrap=True,
    )
