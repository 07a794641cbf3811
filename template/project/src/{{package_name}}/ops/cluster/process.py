"""A process that outlives the command that started it, and is found again by the next one."""

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from . import ClusterError

STOP_TIMEOUT = 20.0
"""Seconds a process gets to shut down; a fast shutdown of an idle PostgreSQL takes 0.03."""


class Process(ABC):
    """It keeps no state of its own: a file with its process id is the truth."""

    log: Path
    """Where it says what went wrong."""

    @property
    @abstractmethod
    def pid_file(self) -> Path:
        """The file whose first line is the process id."""

    @property
    @abstractmethod
    def mark(self) -> str:
        """What only this process has on its command line."""

    @abstractmethod
    def spawn(self) -> "subprocess.Popen[bytes]":
        """Start it without waiting for it."""

    @abstractmethod
    def wait_until_ready(self, process: "subprocess.Popen[bytes]") -> bool:
        """Wait for what was spawned; False if it ended instead, as it does when its port was taken meanwhile.

        Raises:
            ClusterError: it neither accepts connections nor ends.
        """

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it runs and accepts connections."""

    def pid(self) -> int | None:
        """The process id while it runs, or None."""
        with suppress(ValueError, IndexError):
            pid = int(self.recorded()[0])
            if is_running(pid) and self._is_ours(pid):
                return pid
        return None

    def signal(self, number: signal.Signals) -> int | None:
        """Send a signal, if it runs; its process id."""
        pid = self.pid()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return pid

    def wait_until_gone(self, pid: int) -> None:
        """Wait for the process that `signal` named.

        Raises:
            ClusterError: it is still there.
        """
        deadline = time.monotonic() + STOP_TIMEOUT
        while is_running(pid) and self.recorded():
            if time.monotonic() > deadline:
                raise ClusterError(f"process {pid} does not stop; its log is {self.log}")
            time.sleep(0.005)

    def recorded(self) -> Sequence[str]:
        """The lines of the file with the process id; none if there is no such file."""
        try:
            return self.pid_file.read_text().splitlines()
        except OSError:
            return ()

    def _is_ours(self, pid: int) -> bool:
        """Whether the process is the one that was started, not a stranger who inherited its number."""
        if not Path("/proc/self").exists():
            return True
        with suppress(OSError):
            return self.mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        return False


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    # One that this very process started stays a zombie until it is waited for.
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not is_zombie(pid)


def is_zombie(pid: int) -> bool:
    """Whether the process has ended and nobody has asked how."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False
