"""A child process that outlives the command that started it and that later commands find again."""

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from . import ClusterError, without_links

STOP_TIMEOUT = 20.0
"""Seconds a process gets to shut down; a fast shutdown of an idle PostgreSQL takes 0.03."""


@dataclass(frozen=True)
class Process(ABC):
    """A process known by its pid file; the object itself holds no state."""

    ready_timeout: ClassVar[float] = 30.0
    """Seconds a process gets to accept connections; crash recovery of a small PostgreSQL takes 0.1."""

    command: Sequence[str]
    mark: str
    """Part of the command line that no other process has."""
    pid_file: Path
    """File whose first line is the process id."""
    log: Path
    """File with the output of the process."""

    @abstractmethod
    def is_listening(self, pid: int) -> bool:
        """Return whether process `pid`, not some other process, listens on the port."""

    @abstractmethod
    def configure(self, settings: Mapping[str, object]) -> None:
        """Write the settings that the process reads at its next start, if it reads any from a file."""

    def is_ready(self) -> bool:
        """Return whether the process runs and accepts connections."""
        pid = self.pid()
        return pid is not None and self.is_listening(pid)

    def is_paused(self) -> bool:
        """Return whether the process was stopped by a signal and waits for another one to go on."""
        pid = self.pid()
        return pid is not None and _state(pid) in ("T", "t")

    def spawn(self) -> "subprocess.Popen[bytes]":
        """Start the process without waiting for it."""
        with open(self.log, "ab", opener=without_links) as log:
            return subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True, **self._options())

    def wait_until_ready(self, process: "subprocess.Popen[bytes]") -> bool:
        """Wait for a spawned process; return False if it ended, as it does when another process took its port.

        Raises:
            ClusterError: the process neither accepts connections nor ends.
        """
        deadline = time.monotonic() + self.ready_timeout
        while time.monotonic() < deadline:
            is_listening = self.is_listening(process.pid)
            if process.poll() is not None:
                return False
            if is_listening:
                # The process is to outlive this one; Popen would warn about a returncode of None.
                process.returncode = 0
                return True
            time.sleep(0.005)
        raise ClusterError(f"process {process.pid} is not ready after {self.ready_timeout} s; its log is {self.log}")

    def pid(self) -> int | None:
        """Return the process id; None if the process does not run."""
        with suppress(ValueError, IndexError):
            pid = int(self.recorded()[0])
            if is_running(pid) and self._is_ours(pid):
                return pid
        return None

    def send_signal(self, number: signal.Signals) -> int | None:
        """Send a signal to the process if it runs; return its process id."""
        pid = self.pid()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return pid

    def wait_until_gone(self, pid: int) -> None:
        """Wait for the end of the process that `send_signal` returned.

        Raises:
            ClusterError: the process still runs after the timeout.
        """
        deadline = time.monotonic() + STOP_TIMEOUT
        while is_running(pid) and self.recorded():
            if time.monotonic() > deadline:
                raise ClusterError(f"process {pid} does not stop; its log is {self.log}")
            time.sleep(0.005)

    def recorded(self) -> Sequence[str]:
        """Return the lines of the pid file; none if there is no such file."""
        try:
            return self.pid_file.read_text().splitlines()
        except OSError:
            return ()

    def _options(self) -> Mapping[str, Any]:
        """Return the arguments of every call of `subprocess`."""
        return {"stdin": subprocess.DEVNULL, "cwd": "/"}

    def _is_ours(self, pid: int) -> bool:
        """Return whether the process is the one that was started, not a later one with the same id."""
        if not Path("/proc/self").exists():
            return True
        with suppress(OSError):
            return self.mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        return False


def is_running(pid: int) -> bool:
    """Return whether a process that this user may signal exists and has not ended."""
    # A child of this process stays a zombie until somebody waits for it.
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return not is_zombie(pid)


def is_zombie(pid: int) -> bool:
    """Return whether a process has ended and its parent has not waited for it."""
    return _state(pid) == "Z"


def _state(pid: int) -> str:
    """Return the state of a process as a letter of proc(5); none where there is no /proc."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""
