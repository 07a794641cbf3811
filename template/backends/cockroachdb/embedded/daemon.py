"""A process of the local cluster whose process id is written down by who starts it."""

import subprocess
import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from . import ClusterError, write_private
from .process import Process

READY_TIMEOUT = 60.0
"""Seconds that a process gets to be there; an idle machine takes 0.1 for a gateway, 2 for a node of a cluster."""


class Daemon(Process):
    """A subclass says what is run, and how one sees that it is there."""

    @property
    @abstractmethod
    def command(self) -> Sequence[str]:
        """The program and its arguments."""

    @abstractmethod
    def is_there(self) -> bool:
        """Whether somebody answers."""

    @property
    def pid_file(self) -> Path:
        """Written when it is started."""
        return self.log.with_suffix(".pid")

    def spawn(self) -> "subprocess.Popen[bytes]":
        """Start it without waiting for it."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
            )
        write_private(self.pid_file, f"{process.pid}\n")
        return process

    def wait_until_ready(self, process: "subprocess.Popen[bytes]") -> bool:
        """Wait for what was spawned; False if it ended instead, as it does when its port was taken meanwhile."""
        deadline = time.monotonic() + READY_TIMEOUT
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return False
            if self.is_there() and process.poll() is None:
                # It is to outlive this process; left at None, Popen would complain about that.
                process.returncode = 0
                return True
            time.sleep(0.01)
        raise ClusterError(f"{self.command[0]} does not answer after {READY_TIMEOUT:.0f} s; its log is {self.log}")
