"""Migrate all tenants, a few at a time, and name those that could not be migrated.

A tenant's own database has the revision that counts. The registry repeats it, and has none while it changes. So a run
that was interrupted is simply repeated: tenants that are at the revision already are passed over.
"""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from alembic.script import ScriptDirectory

from ..db.retry import first_line
from ..db.tenants.placement import Placement, TenantState
from ..settings import Settings
from .base import MigrationError
from .connections import Unreachable
from .migrate import Loss, applied, find_loss, find_path, load_config, load_scripts, resolve, version_of
from .provisioning import FAILURES, TenantAdmin, change, expect
from .tenant_server import TenantError

PROCESSES = 4
"""Number of processes; each migrates one tenant at a time, because Alembic cannot do two things in one process."""


@dataclass(frozen=True)
class Outcome:
    """Result of migrating one tenant."""

    name: str
    server: str
    revision: str | None
    """Revision of the tenant now; None if it is unknown."""
    problem: str | None = None
    """Reason why the tenant is not at the revision."""
    moved: bool = False
    """True if a revision was run."""


def migrate_all(
    admin: TenantAdmin,
    *,
    target: str = "head",
    down: bool = False,
    contract: bool = False,
    wait: float = 0.0,
    names: Iterable[str] | None = None,
    at_once: int = PROCESSES,
    on_done: Callable[[Outcome], None] = lambda outcome: None,
    confirm: Callable[[Loss], None] = lambda loss: None,
) -> list[Outcome]:
    """Migrate tenants to one revision, suspended ones too; return the outcomes in the order of the names.

    A tenant that fails stops no other.

    Args:
        admin: the tenants' admin.
        target: a revision of `migrations/versions`, or `head`.
        down: undo the revisions that follow `target`; without it, a tenant that has them is left as it is.
        contract: run revisions with `contract = True`, which take away what earlier code may use.
        wait: time in seconds to wait for another command on a tenant to end.
        names: names of the tenants; None: all.
        at_once: number of tenants at the same time.
        on_done: called with each outcome.
        confirm: called before revisions are undone, with what that deletes in all tenants; it raises to prevent it.

    Raises:
        MigrationError: there is no such revision.
        TenantError: there is no such tenant.
        Unreachable: the registry does not answer.
    """
    revision, tenants = resolve_target(admin, target), chosen(admin, names)
    if down:
        _confirm(admin, tenants, revision, confirm)
    outcomes = []
    migrate_tenant = partial(migrate_one, admin, revision=revision, down=down, contract=contract, wait=wait)
    for outcome in _migrate_each(admin, tenants, migrate_tenant, at_once):
        outcomes.append(outcome)
        on_done(outcome)
    return sorted(outcomes, key=lambda outcome: outcome.name)


def chosen(admin: TenantAdmin, names: Iterable[str] | None = None) -> list[Placement]:
    """Return the placements of the tenants of these names, or of all, that are active or suspended."""
    tenants = [found for found in admin.all() if found.state in (TenantState.ACTIVE, TenantState.SUSPENDED)]
    if names is None:
        return tenants
    wanted = {admin.find(name).name for name in names}
    return [found for found in tenants if found.name in wanted]


def stragglers(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the outcomes of the tenants that are not at the revision."""
    return [outcome for outcome in outcomes if outcome.problem is not None]


def describe(behind: Iterable[Outcome]) -> str:
    """Return one line for each reason, with the first tenants that have it."""
    by_reason: dict[str, list[str]] = {}
    for outcome in behind:
        names = by_reason.setdefault(outcome.problem or "", [])
        names.append(f"{outcome.name} (at {outcome.revision or 'an unknown revision'})")
    return "\n".join(
        ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") + f": {reason}"
        for reason, names in by_reason.items()
    )


def migrate_one(
    admin: TenantAdmin,
    name: str,
    revision: str,
    down: bool = False,
    contract: bool = False,
    wait: float = 0.0,
) -> Outcome:
    """Migrate one tenant; a failure is returned, not raised."""
    server, at = "", None
    try:
        with admin.lock(name, wait=wait) as registry:
            found = expect(registry, name, TenantState.ACTIVE, TenantState.SUSPENDED)
            server, at = found.server, found.revision
            at = _version(admin, server, name)
            if at == revision:
                if found.revision != revision:
                    change(registry, name, revision=revision)
                return Outcome(name, server, revision)
            change(registry, name, revision=None)
            try:
                admin.migrate(server, name, revision, down=down, contract=contract, wait=wait)
            finally:
                at = None
                # The last of several revisions may have failed.
                at = _version(admin, server, name)
                change(registry, name, revision=at)
            return Outcome(name, server, at, moved=True)
    except FAILURES as error:
        return Outcome(name, server, at, first_line(error))


def versions(project: Path) -> dict[str, tuple[ScriptDirectory, str, str | None]]:
    """Return the revisions, the version, and the reason if that is unknown, of each tenant in the registry."""
    admin = TenantAdmin.from_settings(Settings(), project)
    scripts = load_scripts(load_config(project))

    def look(found: Placement) -> tuple[ScriptDirectory, str, str | None]:
        try:
            return scripts, _version(admin, found.server, found.name), None
        except FAILURES as error:
            return scripts, "", first_line(error)

    tenants = chosen(admin)
    with ThreadPoolExecutor(PROCESSES) as threads:
        return dict(zip([found.name for found in tenants], threads.map(look, tenants), strict=True))


def _version(admin: TenantAdmin, server: str, name: str) -> str:
    with admin.as_owner(server, name) as connection:
        return version_of(connection) or "base"


def resolve_target(admin: TenantAdmin, target: str) -> str:
    """Return the revision that `target` means."""
    if target.startswith(("+", "-")):
        raise MigrationError(f"{target} is another revision for each tenant: name the revision")
    return resolve(load_scripts(load_config(admin.project)), target)


def _confirm(admin: TenantAdmin, tenants: Iterable[Placement], revision: str, confirm: Callable[[Loss], None]) -> None:
    """Call `confirm` with what going down to a revision deletes, if it deletes anything."""
    scripts = load_scripts(load_config(admin.project))
    revisions, rows = dict[str, None](), Counter[str]()
    for found in tenants:
        # A tenant that cannot be asked is not migrated either.
        with suppress(*FAILURES), admin.as_owner(found.server, found.name) as connection:
            path = find_path(scripts, [applied(scripts, version_of(connection))], revision, down=True)
            loss = find_loss([connection], [script for script, back in path if back])
            revisions.update(dict.fromkeys(loss.revisions))
            rows.update(loss.rows)
    if revisions:
        confirm(Loss(list(revisions), rows))


def silent_servers(admin: TenantAdmin, servers: Iterable[str]) -> dict[str, str]:
    """Return the servers that do not answer, with the reasons, so that not every tenant's migration waits for them."""
    silent = {}
    for server in sorted(servers):
        try:
            with admin.on_server(server):
                pass
        except (Unreachable, TenantError) as error:
            silent[server] = str(error)
    return silent


def _migrate_each(
    admin: TenantAdmin, tenants: Sequence[Placement], migrate_tenant: Callable[[str], Outcome], at_once: int
) -> Iterator[Outcome]:
    silent = silent_servers(admin, {found.server for found in tenants})
    for found in tenants:
        if found.server in silent:
            yield Outcome(found.name, found.server, found.revision, silent[found.server])
    names = [found.name for found in tenants if found.server not in silent]
    workers = min(at_once, len(names))
    if workers <= 1:
        yield from map(migrate_tenant, names)
        return
    # Forked from a server process, because this one may have threads and connections.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(migrate_tenant, name) for name in names]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
