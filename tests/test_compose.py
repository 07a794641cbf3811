"""The nodes of `compose.yaml` in real containers, driven by the project's command line.

No image is pulled: a backend without a local image is skipped. An image may be a local stand-in, labelled
`stand-in=true`; the project must report it as one. A stand-in has the tag of the image that it stands in for,
and never its digest.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from conftest import QUESTIONNAIRE, ROOT
from scaffold import matrix
from scaffold.render import render

PROFILES = QUESTIONNAIRE.profiles()
# Seconds; arbitrary, many times what the longest command takes.
TIMEOUT = 600

PROMOTE = """
import sys
from pathlib import Path
from sqlalchemy import text
from shop.ops.cluster.compose import Compose
from shop.ops.connections import connect

with connect(Compose(Path(".cluster")).admin_urls()[sys.argv[1]], node=sys.argv[1]) as connection:
    assert connection.scalar(text("SELECT pg_promote()"))
"""


class Project:
    """A rendered project whose nodes are containers, on free ports."""

    def __init__(self, folder: Path, backend: str) -> None:
        """Render the project under a unique name, which its containers get."""
        self.folder = folder
        self.python = sys.executable
        self.profile = PROFILES[backend]
        self.name = f"test-{backend}-{uuid4().hex[:8]}"
        self.nodes = [node["name"] for node in self.profile["nodes"]]
        self.environment = {
            **os.environ,
            **{
                f"{node.upper()}_PORT": str(port)
                for node, port in zip(self.nodes, free_ports(len(self.nodes)), strict=True)
            },
            "PYTHONPATH": "src",
            "COLUMNS": "200",
        }
        render(ROOT, folder, {"project_name": self.name, "package_name": "shop", "backend": backend})

    def call(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in the project's folder."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )

    def shop(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of the project, which must succeed."""
        result = self.call(self.python, "-m", "shop", *arguments)
        assert result.returncode == 0, f"shop {' '.join(arguments)}\n{result.stdout}\n{result.stderr}"
        return result

    def roles(self) -> dict[str, str]:
        """Return the role of each node as `status` shows it, or `down`."""
        rows = [line.split() for line in self.shop("status").stdout.splitlines()[1:]]
        return {row[0]: row[1] if row[-1] == "up" else "down" for row in rows}

    def writer(self) -> str:
        """Return the only node that takes writes."""
        [found] = [node for node, role in self.roles().items() if role == "writer"]
        return found

    def verify(self, *options: str) -> dict[str, Any]:
        """Return the report of `verify` by check; no check may fail or be skipped."""
        result = self.shop("verify", "--json", *options)
        assert result.stderr == ""
        answers = json.loads(result.stdout)["checks"]
        assert {one["id"]: one["summary"] for one in answers if one["status"] in ("FAIL", "SKIP")} == {}
        return {one["id"]: one for one in answers}

    def images(self) -> set[str]:
        """Return the images of the services."""
        result = self.call("docker", "compose", "config", "--images")
        assert result.returncode == 0, result.stderr
        return set(result.stdout.split())

    def use_stand_in(self) -> None:
        """Name the image by its tag alone if only a local stand-in of that tag is here."""
        pinned: str = self.profile["image"]
        tag = pinned.partition("@")[0]
        label = '{{index .Config.Labels "stand-in"}}'
        if self.call("docker", "image", "inspect", pinned).returncode and (
            self.call("docker", "image", "inspect", "--format", label, tag).stdout.strip() == "true"
        ):
            [variable] = re.findall(r"\$\{([A-Z]+_IMAGE):-", (self.folder / "compose.yaml").read_text())
            self.environment[variable] = tag

    def left(self) -> list[str]:
        """Return the containers, volumes and networks of the project that are left."""
        label = f"label=com.docker.compose.project={self.name}"
        kinds = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
        return [
            found
            for kind in kinds
            for found in self.call("docker", *kind, "--quiet", "--filter", label).stdout.split()
        ]


def free_ports(count: int) -> list[int]:
    """Find free ports on loopback; all of them are held at once, so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def why_not() -> str | None:
    """Return the reason that no container can run here; None if containers can."""
    if not shutil.which("docker"):
        return "docker is not here"
    for command, missing in ((["compose", "version"], "docker compose"), (["version"], "a Docker engine")):
        try:
            subprocess.run(["docker", *command], capture_output=True, timeout=60, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return f"{missing} is not here"
    return None


@pytest.fixture(scope="module", params=PROFILES)
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Start and migrate a cluster that the tests share; each leaves it complete, whichever node writes."""
    if reason := why_not():
        pytest.skip(reason)
    project = Project(tmp_path_factory.mktemp("compose") / "shop", request.param)
    project.use_stand_in()
    for image in sorted(project.images()):
        if project.call("docker", "image", "inspect", image).returncode:
            pytest.skip(f"no local image {image}, and tests pull none")
    project.python = matrix.interpreter(project.folder, tmp_path_factory.mktemp("environment") / ".venv")
    try:
        project.shop("up", "--cluster", "compose")
        project.shop("migrate")
        yield project
    finally:
        project.call("docker", "compose", "down", "--volumes", "--timeout", "0")


@pytest.fixture
def followed(project: Project) -> Project:
    """Return a cluster with one writer and readers; skip the test elsewhere."""
    if "failover.py" not in project.profile["ops_files"]:
        pytest.skip("no node replicates another here")
    return project


def test_every_promise_holds_and_the_loss_of_a_node_costs_nothing(project: Project) -> None:
    project.verify("--chaos")
    assert set(project.roles()) == set(project.nodes)
    assert "down" not in project.roles().values()


def test_a_stand_in_is_called_one(project: Project) -> None:
    services = json.loads(project.call("docker", "compose", "config", "--format", "json").stdout)["services"]
    image = services[project.nodes[0]]["image"]
    label = '{{index .Config.Labels "stand-in"}}'
    labelled = project.call("docker", "image", "inspect", "--format", label, image).stdout.strip()
    stderr = project.shop("status").stderr
    assert image.partition("@")[0] in stderr
    assert ("stand-in" in stderr) is (labelled == "true")


def test_a_container_is_confined(project: Project) -> None:
    """The engine has what compose.yaml promises, and a program inside meets it."""
    names = project.call("docker", "compose", "ps", "--quiet").stdout.split()
    found = json.loads(project.call("docker", "inspect", *names).stdout)
    assert len(found) >= len(project.nodes)
    for container in found:
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert min(host["Memory"], host["PidsLimit"]) > 0
        assert host["CapDrop"] == ["ALL"]
        assert not host["CapAdd"]
        assert host["LogConfig"]["Config"]["max-size"]
        inside = ("docker", "exec", container["Id"], "bash", "-c")
        assert project.call(*inside, "id -u").stdout.strip() not in ("", "0")
        assert project.call(*inside, "grep CapEff /proc/self/status").stdout.split() == ["CapEff:", "0" * 16]
        for path in ("/x", "/etc/x", "/usr/bin/x"):
            assert "Read-only file system" in project.call(*inside, f"echo > {path}").stderr


def test_a_login_inside_a_container_needs_a_password(project: Project) -> None:
    if project.profile["can_be_insecure"]:
        pytest.skip("the nodes are no PostgreSQL")
    for host in ("127.0.0.1", "localhost"):
        login = f"psql -w -h {host} -U admin -d postgres -c 'SELECT 1'"
        refused = project.call("docker", "compose", "exec", "-T", project.nodes[0], "bash", "-c", login)
        assert "no password supplied" in refused.stderr
    rules = "SELECT DISTINCT auth_method FROM pg_hba_file_rules ORDER BY 1"
    login = f'psql -XqAt -U admin -d postgres -c "{rules}"'
    given = project.call("docker", "compose", "exec", "-T", project.nodes[0], "bash", "-c", login)
    assert given.stdout.split() == ["peer", "scram-sha-256"]


def test_the_container_that_watches_links_can_log_in_as_the_monitor_only(project: Project) -> None:
    inside = ("docker", "compose", "exec", "-T", "mesh", "bash", "-c")
    if "mesh:" not in (project.folder / "compose.yaml").read_text():
        pytest.skip("no container watches links here")
    logins = project.call(*inside, "cat /job/*pass*").stdout.split()
    assert [login.split(":")[3] for login in logins] == ["shop_monitor"]
    query = "SELECT count(*) FROM pg_authid"
    refused = project.call(*inside, f'psql -w -h {project.nodes[0]} -U "$MONITOR" -c "{query}"')
    assert "permission denied" in refused.stderr


def test_up_leaves_alone_what_runs(project: Project) -> None:
    containers = ("docker", "compose", "ps", "--quiet", *project.nodes)
    before = project.call(*containers).stdout
    project.shop("up")
    assert len(before.split()) == len(project.nodes)
    assert project.call(*containers).stdout == before


def test_a_cluster_that_was_down_comes_up_with_its_data(project: Project) -> None:
    before = project.roles()
    project.shop("down")
    project.shop("up")
    assert project.roles() == before
    assert project.verify()["SchemaIsTheSame"]["status"] == "PASS"


def test_a_node_that_was_killed_starts_again(project: Project) -> None:
    before = project.roles()
    node = project.nodes[-1]
    project.shop("stop", node, "--kill")
    assert project.roles() == before | {node: "down"}
    project.shop("start", node)
    assert project.roles() == before


def test_a_reader_takes_over_and_the_former_writer_follows_it(followed: Project) -> None:
    former = followed.writer()
    followed.shop("failover", "--kill")
    assert followed.roles()[former] == "down"
    assert followed.writer() != former
    followed.shop("rejoin", former)
    assert followed.roles()[former] == "reader"
    followed.verify()


def test_a_reader_starts_and_takes_over_while_nobody_writes(followed: Project) -> None:
    former = followed.writer()
    reader, other = (node for node in followed.nodes if node != former)
    followed.shop("stop", former, "--kill")
    followed.shop("stop", reader)
    followed.shop("start", reader)
    assert followed.roles() == {former: "down", reader: "reader", other: "reader"}
    followed.shop("failover", reader)
    followed.shop("start", former)
    assert followed.roles() == {former: "reader", reader: "writer", other: "reader"}


def test_a_node_promoted_by_mistake_follows_again(followed: Project) -> None:
    """The node that was promoted last becomes the writer at a start, so rejoining has to undo that."""
    writer = followed.writer()
    mistaken = next(node for node in followed.nodes if node != writer)
    promoted = followed.call(followed.python, "-c", PROMOTE, mistaken)
    assert promoted.returncode == 0, promoted.stderr
    assert list(followed.roles().values()).count("writer") == 2
    followed.shop("rejoin", mistaken)
    assert followed.writer() == writer
    followed.verify()


def test_a_wrong_password_is_explained(project: Project) -> None:
    if project.profile["can_be_insecure"]:
        pytest.skip("the nodes take the password of the file at each `up`")
    file = project.folder / ".secrets" / "admin_password"
    right = file.read_text()
    file.write_text("wrong")
    result = project.call(project.python, "-m", "shop", "up")
    file.write_text(right)
    assert result.returncode == 2
    assert 'password authentication failed for user "admin"' in result.stderr
    assert "Traceback" not in result.stderr
    project.shop("up")


def test_destroy_leaves_nothing(project: Project) -> None:
    assert project.left() != []
    project.shop("destroy")
    assert project.left() == []
