"""A process whose pid file is written by the command that starts it."""

import subprocess
from collections.abc import Mapping

from . import write_private
from .process import Process


class Daemon(Process):
    """A process that writes no pid file of its own."""

    ready_timeout = 60.0
    """Seconds a process gets to accept connections; an idle machine takes 0.1 for a gateway, 2 for a node."""

    def configure(self, settings: Mapping[str, object]) -> None:
        """Write nothing, because all settings are on the command line."""

    def spawn(self) -> "subprocess.Popen[bytes]":
        """Start the process without waiting for it."""
        process = super().spawn()
        write_private(self.pid_file, f"{process.pid}\n")
        return process
