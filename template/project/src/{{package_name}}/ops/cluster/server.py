"""One PostgreSQL server as a plain process."""

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import ClusterError, write_private
from .binaries import run_as, run_command
from .process import STOP_TIMEOUT, Process, is_running, is_zombie


@dataclass(frozen=True)
class Server(Process):
    """A PostgreSQL server with its data directory and the user that it runs as."""

    data: Path
    user: pwd.struct_passwd | None

    def is_listening(self, pid: int) -> bool:
        """Return whether server process `pid` accepts connections."""
        lines = self.recorded()
        # The server writes the eighth line when it accepts connections (src/include/utils/pidfile.h).
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def spawn(self) -> "subprocess.Popen[bytes]":
        """Start the server without waiting for it."""
        self._wait_for_children()
        return super().spawn()

    def initialize(self, *, superuser: str, password: str) -> None:
        """Create the data directory; raise ClusterError if that fails."""
        if self.user is None:
            try:
                pwd.getpwuid(os.geteuid())
            except KeyError:
                raise ClusterError(
                    f"PostgreSQL needs a name for the user {os.geteuid()}, and /etc/passwd has none. Add one, or run "
                    "this as a user that is there."
                ) from None
        password_file = self.data.with_suffix(".password")
        write_private(password_file, password, owner=self.user)
        try:
            self.replace_data(
                lambda fresh: self.run(
                    "initdb",
                    *("--pgdata", str(fresh), "--username", superuser, "--pwfile", str(password_file)),
                    *("--auth", "scram-sha-256", "--encoding", "UTF8", "--no-sync", "--no-instructions"),
                    # Small segments keep a fresh data directory at 30 MB.
                    *("--locale", "C", "--wal-segsize", "1"),
                    # Iterations protect weak passwords and slow down each login; these passwords are 144 random bits.
                    *("--set", "scram_iterations=1"),
                )
            )
        finally:
            password_file.unlink()

    def replace_data(self, make: Callable[[Path], object]) -> None:
        """Replace the data directory by one that `make` creates at the path it gets; keep the old one if that fails."""
        # A path of its own: a child of a killed command may still write to the path of that command.
        fresh = self.data.with_name(f"{self.data.name}.{os.getpid()}")
        shutil.rmtree(fresh, ignore_errors=True)
        make(fresh)
        shutil.rmtree(self.data, ignore_errors=True)
        fresh.rename(self.data)

    def copy_to(self, other: "Server") -> None:
        """Copy the data directory of this server, which is stopped, to another server."""
        other.replace_data(lambda fresh: run_command("cp", "-a", str(self.data), str(fresh)))

    def configure(self, settings: Mapping[str, object]) -> None:
        """Write the settings that the server reads at its next start."""
        lines = (f"{name} = '{str(value).replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items())
        write_private(self.data / "postgresql.auto.conf", "".join(lines), owner=self.user)

    def run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs as the server's user; return its output.

        Raises:
            ClusterError: the program failed; the message has its output.
        """
        result: subprocess.CompletedProcess[str] = subprocess.run(
            [str(Path(self.command[0]).with_name(program)), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            **self._options(),
        )
        if result.returncode:
            raise ClusterError(f"{program} failed: {result.stdout.strip()}")
        return result.stdout

    def _options(self) -> Mapping[str, Any]:
        folder = str(self.data.parent)
        services = f"{folder}/service.conf"
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", "HOME": folder, "PGSERVICEFILE": services}
        return {**super()._options(), "env": environment, **run_as(self.user)}

    def _wait_for_children(self) -> None:
        """Wait for the children of a killed server: PostgreSQL refuses to start while one is in the data directory."""
        with suppress(ValueError, IndexError, OSError):
            pid = int(self.recorded()[0])
            deadline = time.monotonic() + STOP_TIMEOUT
            while not is_running(pid) and time.monotonic() < deadline:
                if not any(_works_in(process, self.data) for process in Path("/proc").glob("[0-9]*")):
                    if is_zombie(pid):  # PostgreSQL takes a server that its parent never waited for as running
                        self.pid_file.unlink()
                    return
                time.sleep(0.02)


def _works_in(process: Path, folder: Path) -> bool:
    with suppress(OSError):
        return (process / "cwd").readlink() == folder
    return False
