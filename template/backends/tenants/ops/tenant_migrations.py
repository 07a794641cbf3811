"""Migrations of all tenants: a few at a time, each by itself, and in the end the names of those that did not come along.

A tenant's own database knows which revision it is at; the registry repeats it, and says nothing while that changes. So a run that
was interrupted is simply run again: who is there already is passed over.
"""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ..db.registry import State
from ..db.retry import first_line
from .connections import Unreachable
from .migrate import load_config, version_of
from .provisioning import Registrar, TenantError, change, settled
from .statements import MigrationError
from .topology import TopologyError

AT_ONCE = 4
"""Processes, of which each migrates one tenant at a time. Alembic can do no two things in one."""


@dataclass(frozen=True)
class Outcome:
    """How it went with one tenant."""

    name: str
    server: str
    revision: str | None
    """Which one it is at now; None if nobody could ask."""
    problem: str | None = None
    """Why it is not where it should be."""
    moved: bool = False
    """Whether there was something to do."""


def migrate_all(
    registrar: Registrar,
    *,
    target: str = "head",
    names: Iterable[str] | None = None,
    at_once: int = AT_ONCE,
    on_done: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Bring every tenant to one revision, suspended ones too; how it went with each, in order.

    A tenant that fails stops no other.

    Args:
        registrar: who may.
        target: a revision of `migrations/versions`, or `head`.
        names: whom; all if absent.
        at_once: how many at the same time.
        on_done: is told of each when it has ended, and before of those that need nothing.

    Raises:
        MigrationError: there is no such revision.
        TenantError: there is no such tenant.
        Unreachable: the registry does not answer.
    """
    revision = resolved(registrar, target)
    chosen = [found for found in registrar.all() if found.state in (State.ACTIVE, State.SUSPENDED)]
    if names is not None:
        wanted = {name: registrar.find(name) for name in names}
        chosen = [found for found in chosen if found.name in wanted]
    outcomes: list[Outcome] = []

    def note(outcome: Outcome) -> None:
        outcomes.append(outcome)
        on_done(outcome)

    silent = _silent(registrar, {found.server for found in chosen})
    for found in chosen:
        if found.server in silent:
            note(Outcome(found.name, found.server, found.revision, silent[found.server]))
    due = [found.name for found in chosen if found.server not in silent]
    for outcome in _each(registrar, due, revision, at_once):
        note(outcome)
    return sorted(outcomes, key=lambda outcome: outcome.name)


def stragglers(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those who did not come along."""
    return [outcome for outcome in outcomes if outcome.problem is not None]


def told(behind: Sequence[Outcome]) -> str:
    """Stragglers in a few lines: one for each reason, with the tenants that it has."""
    by_reason: dict[str, list[str]] = {}
    for outcome in behind:
        reason = outcome.problem or ""
        by_reason.setdefault(reason, []).append(f"{outcome.name} (at {outcome.revision or 'an unknown revision'})")
    lines = []
    for reason, names in by_reason.items():
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        lines.append(f"{', '.join(names[:5])}{more}: {reason}")
    return "\n".join(lines)


def resolved(registrar: Registrar, target: str) -> str:
    """The revision that `target` means.

    Raises:
        MigrationError: there is none.
    """
    scripts = ScriptDirectory.from_config(load_config(registrar.project))
    if target == "base":
        return target
    try:
        script = scripts.get_revision(target)
    except (CommandError, RevisionError) as error:
        raise MigrationError(str(error)) from error
    if script is None:
        raise MigrationError(f"there is no revision {target!r}")
    return script.revision


def migrate_one(registrar: Registrar, name: str, revision: str) -> Outcome:
    """Bring one tenant to a revision; whatever goes wrong is told, not raised."""
    server, at = "", None
    try:
        with registrar.alone(name) as registry:
            found = settled(registry, name, State.ACTIVE, State.SUSPENDED)
            server, at = found.server, found.revision
            with registrar.in_database(server, name) as connection:
                at = version_of(connection) or "base"
            if at == revision:
                if found.revision != revision:
                    change(registry, name, revision=revision)
                return Outcome(name, server, revision)
            change(registry, name, revision=None)
            try:
                registrar.bring_to(server, name, revision)
            finally:
                at = None
                # Not what was asked for but what is: of several revisions some may have been made.
                with registrar.in_database(server, name) as connection:
                    at = version_of(connection) or "base"
                change(registry, name, revision=at)
            return Outcome(name, server, at, moved=True)
    except (TenantError, Unreachable, MigrationError, TopologyError, DBAPIError) as error:
        return Outcome(name, server, at, first_line(error))


def _silent(registrar: Registrar, servers: Iterable[str]) -> dict[str, str]:
    """The servers that do not answer, each with the reason: so that nobody waits for one of them once per tenant."""
    found = {}
    for server in sorted(servers):
        try:
            with registrar.on_server(server) as connection:
                connection.execute(text("SELECT 1"))
        except (Unreachable, TenantError) as error:
            found[server] = str(error)
    return found


def _each(registrar: Registrar, names: Sequence[str], revision: str, at_once: int) -> Iterator[Outcome]:
    workers = min(at_once, len(names))
    if workers <= 1:
        for name in names:
            yield migrate_one(registrar, name, revision)
        return
    # Not forked, for this process may have threads and connections; forked from one that has only loaded what is needed.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(migrate_one, registrar, name, revision) for name in names]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
