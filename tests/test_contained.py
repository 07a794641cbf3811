"""A project's local cluster in a container, as a user without any privilege: it works and leaves nothing.

The container has no image: the programs and the interpreter of this machine are mounted into it, read-only.
"""

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from conftest import ROOT
from scaffold.render import render

USER = 1234
"""A user whom this machine need not have."""

# Seconds; arbitrary, many times what the commands take.
TIMEOUT = 600

# The first process of the container. It waits for no process but its commands, as most programs there.
INSIDE = """
import json, os, shutil, subprocess, sys
from pathlib import Path

shutil.copytree("/project", "/home/app/project")
os.chdir("/home/app/project")
FOLDERS = [Path(name) for name in ("/tmp", "/var/tmp", "/dev/shm", "/home/app")]

def files():
    return {str(path) for folder in FOLDERS for path in folder.rglob("*")}

def shop(*command):
    done = subprocess.run([sys.executable, "-m", "shop", *command], capture_output=True, text=True)
    return {"exit": done.returncode, "said": done.stdout + done.stderr}

def processes():
    found = []
    for folder in Path("/proc").glob("[1-9]*"):
        try:
            # A process that has ended has no command line.
            found.append((folder / "cmdline").read_text().replace("\\0", " ").strip())
        except OSError:
            pass
    return sorted(filter(None, found))

def sockets():
    listening = [line.split()[1] for name in ("tcp", "tcp6") for line in
                 Path("/proc/net", name).read_text().splitlines()[1:] if line.split()[3] == "0A"]
    return listening + [line for line in Path("/proc/net/unix").read_text().splitlines()[1:]]

before = files(), processes()
up = shop("up")
while_up = {"sockets": sockets(), "processes": len(processes())}
done = {command: shop(command) for command in ("migrate", "verify", "destroy")}
left = {"files": sorted(files() - before[0]), "processes": sorted(set(processes()) - set(before[1])),
        "sockets": sockets()}
print(json.dumps({"up": up, **done, "while_up": while_up, "left": left}))
"""


def docker(*arguments: str) -> str:
    """Run a command of the engine, which must succeed, and return its output."""
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Make an image of empty folders, whose programs are those of this machine."""
    if (
        not shutil.which("docker")
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no Docker engine answers")
    archive = tmp_path_factory.mktemp("image") / "empty.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("usr", "etc", "proc", "sys", "dev", "tmp", "var", "var/tmp", "home", "home/app"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        for name in ("bin", "sbin", "lib", "lib64"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
    name = f"scaffold-test:{uuid4().hex[:8]}"
    docker("import", str(archive), name)
    yield name
    docker("image", "rm", name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render a project, and return the folder that holds it and the script."""
    folder = tmp_path_factory.mktemp("contained")
    render(ROOT, folder / "project", {"project_name": "shop", "backend": "pgedge"})
    (folder / "inside.py").write_text(INSIDE)
    (folder / "passwd").write_text(f"app:x:{USER}:{USER}::/home/app:/bin/sh\n")
    return folder


def run(image: str, folder: Path, *options: str) -> dict[str, Any]:
    """Run the commands of the project as the user; return what they and the container had to say."""
    readable = {
        Path("/usr"),
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(sys.executable).resolve().parents[1],
    }
    mounts = {str(path): str(path) for path in readable}
    mounts |= {str(folder / "project"): "/project", str(folder / "inside.py"): "/inside.py"}
    for name in ("ld.so.cache", "localtime"):
        if Path("/etc", name).is_file():
            mounts[f"/etc/{name}"] = f"/etc/{name}"
    said = docker(
        *("run", "--rm", "--user", f"{USER}:{USER}", "--network", "none", "--read-only"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--workdir", "/"),
        *("--tmpfs", "/tmp:mode=1777", "--tmpfs", "/var/tmp:mode=1777"),  # noqa: S108 - of the container
        *("--tmpfs", f"/home/app:mode=0700,uid={USER},gid={USER}"),
        *("--env", "PYTHONPATH=src", "--env", "PYTHONDONTWRITEBYTECODE=1", "--env", "COLUMNS=200"),
        *(part for source, target in mounts.items() for part in ("--volume", f"{source}:{target}:ro")),
        *(*options, image, sys.executable, "/inside.py"),
    )
    found: dict[str, Any] = json.loads(said)
    return found


def test_a_cluster_in_a_container_works_and_leaves_nothing(image: str, folder: Path) -> None:
    found = run(image, folder, "--volume", f"{folder}/passwd:/etc/passwd:ro")
    for command in ("up", "migrate", "verify", "destroy"):
        assert found[command]["exit"] == 0, found[command]["said"]
    # Three servers, on loopback only, each with processes of its own.
    assert len(found["while_up"]["sockets"]) == 3
    assert all(socket.startswith("0100007F:") for socket in found["while_up"]["sockets"])
    assert found["while_up"]["processes"] > 3
    # The lock stays, because another command may wait for it.
    home = "/home/app/project/.cluster"
    assert found["left"] == {"files": [home, f"{home}/lock"], "processes": [], "sockets": []}


def test_a_user_without_a_name_is_told_how_to_get_one(image: str, folder: Path) -> None:
    """PostgreSQL's initdb looks the user up; images that are run with `--user 1234` do not have it."""
    found = run(image, folder)
    assert found["up"]["exit"] == 2
    assert "error: PostgreSQL needs a name for the user 1234, and /etc/passwd has none" in found["up"]["said"]
    assert found["destroy"]["exit"] == 0
    assert [name for name in found["left"]["files"] if not name.endswith((".cluster", "lock"))] == []
