"""Checks that a tenant which is written to loses nothing: when it moves, and when a server is lost."""

import time

from ...moving import MAX_PAUSE, move
from ..check import Check, CheckContext, CheckResult, judge, skipped
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
        with probes(admin, servers[0]) as (probe,), tenants_of(context) as db:
            with load_on(db, probe.name, self.WRITERS) as load:
                pauses = {server: 1000 * move(admin, probe.name, server).pause for server in [*servers[1:], servers[0]]}
            names = load.acknowledged.keys()
            lost = names - recorded(db, probe.name)
            # The negative control: a row that was deleted is missed.
            forget(db, probe.name, next(iter(names), ""))
            is_detected = names - recorded(db, probe.name)
        writes = {"acknowledged": len(names), "ambiguous": len(load.doubtful), "failed": load.failed[:5]}
        evidence = {**writes, "pause_ms": {server: round(pause, 1) for server, pause in pauses.items()}}
        problems = [f"{len(lost)} of {len(names)} acknowledged writes lost"] if lost else []
        if load.failed:
            problems.append(f"{len(load.failed)} writes failed: {load.failed[0]}")
        if not is_detected:
            problems.append("a row that was deleted on purpose was not missed: this check proves nothing")
        longest = max(pauses.values())
        summary = f"{len(pauses)} moves, {len(names)} acknowledged writes, none lost, longest pause {longest:.0f} ms"
        return judge(problems, summary, evidence, [summary] if longest >= 1000 * MAX_PAUSE else [])


class AServerThatIsLostIsMissedByItsOwn(Check):
    """The loss of a server is felt by its own tenants only, and they lose nothing.

    The log of the server that was killed has the reason.
    """

    requires = ("ServersAreSetUp", "TheRegistryIsTrue")
    timeout = 120.0
    WRITERS = 2
    AWAY = 1.0  # seconds for which the server is down
    BACK_TIMEOUT = 30.0  # seconds within which writes to its tenant succeed again
    MARGIN = 0.5  # seconds of load before the loss, and after the recovery

    def run(self, context: CheckContext) -> CheckResult:
        """Kill a server under load of a tenant there and of one elsewhere, start it again, and look for every row."""
        if context.cluster is None:
            return skipped("only nodes of a local cluster are stopped")
        admin = admin_of(context)
        # The server with the registry stays, because the tenants' placements are read from it in the end.
        elsewhere, lost = min(admin.servers), max(admin.servers)
        with probes(admin, elsewhere, lost) as tenants, tenants_of(context, deadline=60.0) as db:
            loads = {tenant.name: load_on(db, tenant.name, self.WRITERS) for tenant in tenants}
            spared, hit = loads.values()
            with spared, hit:
                time.sleep(self.MARGIN)
                hit.mark(f"{lost} killed")
                context.cluster.stop_node(lost, kill=True)
                before = len(spared.acknowledged)
                time.sleep(self.AWAY)
                meanwhile = len(spared.acknowledged) - before
                late = len(hit.acknowledged)
                context.cluster.start_node(lost)
                hit.mark(f"{lost} started again")
                deadline = time.monotonic() + self.BACK_TIMEOUT
                while len(hit.acknowledged) <= late and time.monotonic() < deadline:
                    time.sleep(0.05)
                time.sleep(self.MARGIN)
            missing = sum(len(load.acknowledged.keys() - recorded(db, name)) for name, load in loads.items())
        acknowledged = len(spared.acknowledged) + len(hit.acknowledged)
        failures = [*spared.failed, *hit.failed]
        ambiguous = len(spared.doubtful) + len(hit.doubtful)
        writes = {"acknowledged": acknowledged, "ambiguous": ambiguous, "failed": failures[:5]}
        timelines = {f"the tenant on {lost}": hit.timeline(), f"the tenant on {elsewhere}": spared.timeline()}
        evidence = {**writes, "elsewhere_meanwhile": meanwhile, "timelines": timelines}
        problems = [f"{missing} of {acknowledged} acknowledged writes are missing"] if missing else []
        if failures:
            problems.append(f"{len(failures)} writes failed: {failures[0]}")
        if not meanwhile:
            problems.append(f"no write on {elsewhere} succeeded meanwhile")
        event = f"{lost} killed for {self.AWAY:.0f} s"
        summary = f"{event}; {meanwhile} writes elsewhere meanwhile, {acknowledged} acknowledged in all, none lost"
        return judge(problems and [event, *problems], summary, evidence)
