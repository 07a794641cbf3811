"""One PostgreSQL server as a plain process that outlives the command that started it."""

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import ClusterError
from .process import STOP_TIMEOUT, Process, is_zombie

READY_TIMEOUT = 30.0
"""Seconds a server gets to accept connections; crash recovery of a small one takes 0.1."""


@dataclass(frozen=True)
class Server(Process):
    """A server with its data directory."""

    programs: Path
    data: Path
    log: Path
    user: pwd.struct_passwd | None
    environment: Mapping[str, str]

    @property
    def pid_file(self) -> Path:
        """Written by the server itself."""
        return self.data / "postmaster.pid"

    @property
    def mark(self) -> str:
        """Its data directory."""
        return str(self.data)

    def initialize(self, *, superuser: str, password: str) -> None:
        """Create the data directory."""
        fresh = self._fresh()
        password_file = fresh.with_suffix(".password")
        descriptor = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(password)
        self.give(password_file)
        try:
            self.tool(
                "initdb",
                *("--pgdata", str(fresh), "--username", superuser, "--pwfile", str(password_file)),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--no-sync", "--no-instructions"),
                # Small segments keep a fresh data directory at 30 MB.
                *("--locale", "C", "--wal-segsize", "1"),
                # Many iterations make it slow to guess a weak password, and to connect: these are 144 random bits.
                *("--set", "scram_iterations=1"),
            )
        finally:
            password_file.unlink()
        self._adopt(fresh)

    def copy_to(self, other: "Server") -> None:
        """Clone the stopped data directory."""
        other.replace_by(lambda fresh: subprocess.run(["cp", "-a", str(self.data), str(fresh)], check=True))

    def replace_by(self, make: Callable[[Path], object]) -> None:
        """Replace the data directory by the one that `make` makes at the path it is given; if it fails, the old one stays."""
        fresh = self._fresh()
        make(fresh)
        self._adopt(fresh)

    def configure(self, settings: Mapping[str, object]) -> None:
        """Write the settings that the server reads at its next start."""
        lines = (f"{name} = '{str(value).replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items())
        file = self.data / "postgresql.auto.conf"
        file.write_text("".join(lines))
        self.give(file)

    def spawn(self) -> "subprocess.Popen[bytes]":
        """Start it without waiting for it."""
        self._forget_zombie()
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [self.programs / "postgres", "-D", str(self.data)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.environment),
                cwd="/",
                start_new_session=True,
                user=self.user.pw_uid if self.user else None,
                group=self.user.pw_gid if self.user else None,
                extra_groups=[] if self.user else None,
            )

    def wait_until_ready(self, process: "subprocess.Popen[bytes]") -> bool:
        """Wait for a spawned server; False if it ended instead, as it does when its port was taken meanwhile.

        Raises:
            ClusterError: it neither accepts connections nor ends.
        """
        deadline = time.monotonic() + READY_TIMEOUT
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return False
            lines = self.recorded()
            # The eighth line is written when the server accepts connections (src/include/utils/pidfile.h).
            if len(lines) > 7 and lines[0] == str(process.pid) and lines[7].strip() == "ready":
                # The server is to outlive this process; left at None, Popen would complain about that.
                process.returncode = 0
                return True
            time.sleep(0.005)
        raise ClusterError(f"PostgreSQL in {self.data} is not ready after {READY_TIMEOUT:.0f} s; its log is {self.log}")

    def is_ready(self) -> bool:
        """Whether the server runs and accepts connections."""
        lines = self.recorded()
        return self.pid() is not None and len(lines) > 7 and lines[7].strip() == "ready"

    def tool(self, name: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs as the server's user; returns what it prints.

        Raises:
            ClusterError: it failed, for the reason in the message.
        """
        result = subprocess.run(
            [str(self.programs / name), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=dict(self.environment),
            cwd="/",
            check=False,
            user=self.user.pw_uid if self.user else None,
            group=self.user.pw_gid if self.user else None,
            extra_groups=[] if self.user else None,
        )
        if result.returncode:
            raise ClusterError(f"{name} failed: {result.stdout.strip()}")
        return result.stdout

    def give(self, path: Path) -> None:
        """Hand a file to the user the server runs as."""
        if self.user is not None:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def _fresh(self) -> Path:
        """Where a data directory is made: a child of a killed command may still be writing to the place of an earlier one."""
        fresh = self.data.with_name(f"{self.data.name}.{os.getpid()}")
        shutil.rmtree(fresh, ignore_errors=True)
        return fresh

    def _adopt(self, fresh: Path) -> None:
        shutil.rmtree(self.data, ignore_errors=True)
        fresh.rename(self.data)

    def _forget_zombie(self) -> None:
        """Remove the pid file of a killed server whose parent has not collected it, and perhaps never will.

        PostgreSQL takes such a zombie for a running server and refuses to start. Its children work in the data directory, so
        the file may go only when none of them is left.
        """
        with suppress(ValueError, IndexError, OSError):
            pid = int(self.recorded()[0])
            deadline = time.monotonic() + STOP_TIMEOUT
            while is_zombie(pid) and time.monotonic() < deadline:
                if not any(_works_in(process, self.data) for process in Path("/proc").glob("[0-9]*")):
                    self.pid_file.unlink()
                    return
                time.sleep(0.02)


def _works_in(process: Path, folder: Path) -> bool:
    with suppress(OSError):
        return (process / "cwd").readlink() == folder
    return False
