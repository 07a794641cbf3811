"""Check that a tenant can move while it is used."""

from ...moving import MAX_PAUSE, move
from ..check import Check, CheckContext, CheckResult, Status, failed, skipped
from .probes import admin_of, forget, load_on, probes, recorded, tenants_of


class AMoveLosesNothing(Check):
    """A tenant moves while it is used, and loses nothing.

    The servers must reach each other: by the addresses in their URLs, or by the one in each server's setting
    `peer.address`.
    """

    requires = ("ServersAreSetUp", "TheRegistryIsTrue")
    timeout = 120.0

    WRITERS = 3

    def run(self, context: CheckContext) -> CheckResult:
        """Write without a break while a tenant moves from server to server, then look for every row."""
        admin = admin_of(context)
        servers = list(admin.servers)
        if len(servers) == 1:
            return skipped("there is no other server")
        route = [*servers[1:], servers[0]]
        with probes(admin, servers[0]) as (probe,), tenants_of(context) as db:
            with load_on(db, probe.name, self.WRITERS) as load:
                pauses = {server: move(admin, probe.name, server).pause for server in route}
            names = load.acknowledged.keys()
            lost = names - recorded(db, probe.name)
            # The negative control: a row that was deleted is missed.
            forget(db, probe.name, next(iter(names), ""))
            is_detected = names - recorded(db, probe.name)
        evidence = {
            "acknowledged": len(names),
            "ambiguous": len(load.doubtful),
            "failed": load.failed[:5],
            "pause_ms": {server: round(1000 * pause, 1) for server, pause in pauses.items()},
        }
        writes = f"{len(names)} acknowledged writes"
        if lost or load.failed:
            first = f": {load.failed[0]}" if load.failed else ""
            return failed(f"{len(lost)} of {writes} lost, {len(load.failed)} failed{first}", evidence)
        if not is_detected:
            return failed("a row that was deleted on purpose was not missed: this check proves nothing", evidence)
        longest = max(pauses.values())
        status = Status.PASS if longest < MAX_PAUSE else Status.WARN
        summary = f"{len(route)} moves, {writes}, none lost, longest pause {1000 * longest:.0f} ms"
        return CheckResult(status, summary, evidence)
