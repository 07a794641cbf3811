"""Check that the loss of a server concerns its own tenants only."""

import time

from ..check import Check, CheckContext, CheckResult, failed, passed, skipped
from .probes import admin_of, load_on, probes, recorded, tenants_of


class AServerThatIsLostIsMissedByItsOwn(Check):
    """The loss of a server is felt by its own tenants only, and they lose nothing.

    The log of the server that was killed has the reason.
    """

    requires = ("ServersAreSetUp", "TheRegistryIsTrue")
    timeout = 120.0

    WRITERS = 2
    AWAY = 1.0
    """Seconds for which the server is down."""
    BACK_TIMEOUT = 30.0
    """Seconds within which writes to its tenant succeed again."""
    MARGIN = 0.5
    """Seconds of load before the loss, and after the recovery."""

    def run(self, context: CheckContext) -> CheckResult:
        """Kill a server under load of a tenant there and of one elsewhere, start it again, and look for every row."""
        if context.cluster is None:
            return skipped("only nodes of a local cluster are stopped")
        admin = admin_of(context)
        # The server with the registry stays, because the tenants' placements are read from it in the end.
        elsewhere, lost = min(admin.servers), max(admin.servers)
        with probes(admin, elsewhere, lost) as tenants, tenants_of(context, deadline=60.0) as db:
            loads = [load_on(db, tenant.name, self.WRITERS) for tenant in tenants]
            with loads[0], loads[1]:
                time.sleep(self.MARGIN)
                context.cluster.stop_node(lost, kill=True)
                before = len(loads[0].acknowledged)
                time.sleep(self.AWAY)
                meanwhile = len(loads[0].acknowledged) - before
                late = len(loads[1].acknowledged)
                context.cluster.start_node(lost)
                deadline = time.monotonic() + self.BACK_TIMEOUT
                while len(loads[1].acknowledged) <= late and time.monotonic() < deadline:
                    time.sleep(0.05)
                time.sleep(self.MARGIN)
            written = zip(loads, tenants, strict=True)
            missing = sum(len(load.acknowledged.keys() - recorded(db, tenant.name)) for load, tenant in written)
        failures = [reason for load in loads for reason in load.failed]
        acknowledged = sum(len(load.acknowledged) for load in loads)
        evidence = {
            "acknowledged": acknowledged,
            "ambiguous": sum(len(load.doubtful) for load in loads),
            "failed": failures[:5],
            "elsewhere_meanwhile": meanwhile,
        }
        if missing:
            return failed(f"{lost} killed; {missing} acknowledged writes are missing", evidence)
        if failures:
            return failed(f"{lost} killed; {len(failures)} writes failed: {failures[0]}", evidence)
        if not meanwhile:
            return failed(f"{lost} killed, and no write on {elsewhere} succeeded either", evidence)
        return passed(
            f"{lost} killed for {self.AWAY:.0f} s; {meanwhile} writes elsewhere meanwhile, "
            f"{acknowledged} acknowledged in all, none lost",
            evidence,
        )
