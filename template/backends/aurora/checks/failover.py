"""Check that a failover loses nothing."""

from ...cluster import Cluster
from ...failover import bring_back, fail_over
from .node_loss import NodeLossCheck


class ANewWriterTakesOver(NodeLossCheck):
    """A new writer takes over when the writer is lost, and the old one comes back as a reader.

    Without `synchronous_standby_names` acknowledged writes can be lost; otherwise the readers' logs have the reason.
    """

    def lose_node(self, cluster: Cluster) -> str:
        """Kill the writer, promote the reader that is furthest ahead, and return a description for the report."""
        done = fail_over(cluster, kill=True)
        self.former = done.former
        return f"{done.former} killed, {done.writer} promoted in {done.seconds:.2f} s"

    def recover(self, cluster: Cluster) -> None:
        """Bring the former writer back as a reader."""
        if self.former is not None:
            bring_back(cluster, self.former)
