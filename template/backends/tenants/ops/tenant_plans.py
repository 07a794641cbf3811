"""Plan the migrations of all tenants: one plan for those that are at the same revision.

The plan is rehearsed in a scratch database on the server of the first of them. Row numbers are those of the tenant that
has most, because a lock holds up one tenant.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

from ..db.retry import first_line
from ..db.tenants.placement import Placement
from .migrate import version_of
from .plan import Plan, make_plan, read_rows
from .provisioning import FAILURES, TenantAdmin
from .tenant_migrations import PROCESSES, Outcome, chosen, resolve_target, silent_servers

EACH = "each of them"
"""Name of the place where the revisions of a plan run."""


@dataclass(frozen=True)
class TenantsPlan:
    """The plan for the tenants at one revision."""

    at: str
    tenants: Sequence[str]
    plan: Plan

    @property
    def heading(self) -> str:
        """The revision and the first tenants."""
        more = f" and {len(self.tenants) - 5} more" if len(self.tenants) > 5 else ""
        return f"at {self.at}: {', '.join(self.tenants[:5])}{more}"

    def lines(self) -> Iterator[str]:
        """Return the plan as text."""
        yield self.heading
        yield from (f"  {line}" for line in self.plan.lines())

    def sql(self) -> Iterator[str]:
        """Return the statements, with a comment for the tenants and for each revision."""
        yield f"-- {self.heading}"
        yield from self.plan.sql()

    def as_dict(self) -> dict[str, object]:
        """Return the plan with all tenants, for JSON."""
        return {"at": self.at, "tenants": list(self.tenants), **asdict(self.plan)}


def plan_all(
    admin: TenantAdmin,
    *,
    target: str = "head",
    down: bool = False,
    rehearse: bool = True,
    names: Iterable[str] | None = None,
) -> tuple[list[TenantsPlan], list[Outcome]]:
    """Return what `migrate_all` with these arguments would do, and the tenants that have no plan, with the reasons.

    Args:
        admin: the tenants' admin.
        target: a revision of `migrations/versions`, or `head`.
        down: undo the revisions that follow `target`.
        rehearse: run the revisions in a scratch database; otherwise only their statements are read.
        names: names of the tenants; None: all.

    Raises:
        MigrationError: there is no such revision.
        TenantError: there is no such tenant.
        Unreachable: the registry does not answer.
    """
    revision, tenants = resolve_target(admin, target), chosen(admin, names)
    silent = silent_servers(admin, {found.server for found in tenants})
    failed: list[Outcome] = []
    groups: dict[str, list[Placement]] = {}
    rows: dict[str, dict[str, int]] = {}

    def look(found: Placement) -> tuple[str, dict[str, int]] | Outcome:
        if found.server in silent:
            return Outcome(found.name, found.server, found.revision, silent[found.server])
        try:
            with admin.as_owner(found.server, found.name) as connection:
                return version_of(connection) or "base", read_rows(connection) if rehearse else {}
        except FAILURES as error:
            return Outcome(found.name, found.server, found.revision, first_line(error))

    with ThreadPoolExecutor(PROCESSES) as threads:
        for found, seen in zip(tenants, threads.map(look, tenants), strict=True):
            if isinstance(seen, Outcome):
                failed.append(seen)
                continue
            at, counted = seen
            groups.setdefault(at, []).append(found)
            most = rows.setdefault(at, {})
            most.update({table: max(number, most.get(table, 0)) for table, number in counted.items()})
    plans = []
    for at, group in sorted(groups.items()):
        try:
            made = _plan(admin, group[0], revision, down=down, rehearse=rehearse)
        except FAILURES as error:
            failed += [Outcome(found.name, found.server, at, first_line(error)) for found in group]
            continue
        steps = [replace(one, nodes=[EACH] if one.nodes else []) for one in made.revisions]
        plans.append(TenantsPlan(at, [found.name for found in group], Plan(steps, rows[at])))
    return plans, sorted(failed, key=lambda outcome: outcome.name)


def _plan(admin: TenantAdmin, found: Placement, revision: str, *, down: bool, rehearse: bool) -> Plan:
    server, name = found.server, found.name
    return make_plan(
        {server: admin.database_url(server, name)},
        owner_urls={server: admin.owner_url(server, name)},
        target=revision,
        down=down,
        rehearse=rehearse,
        project=admin.project,
    )
