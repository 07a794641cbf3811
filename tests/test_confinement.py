"""The containers of a project get what they need, and no more: every promise, on every compose file."""

import copy
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from confinement import breaches, is_pinned
from conftest import EVERY, QUESTIONNAIRE, ROOT, VARIANTS
from test_hooks import program

PROFILES = QUESTIONNAIRE.profiles()
UNPINNED = {"cockroachdb", "pgedge"}
"""Backends whose image has no digest yet; the first run of the workflow `images` writes it."""
Rendered = Callable[[str], Path]


def compose_of(project: Path) -> dict[str, Any]:
    """Return the compose file of a project."""
    found: dict[str, Any] = yaml.safe_load((project / "compose.yaml").read_text())
    return found


def nodes_of(name: str) -> set[str]:
    """Return the nodes of a variant."""
    backend = EVERY[name].answers.get("backend", QUESTIONNAIRE.choices("backend", {})[0])
    return {node["name"] for node in PROFILES[backend]["nodes"]}


@pytest.mark.parametrize("name", EVERY)
def test_every_container_gets_what_it_needs_and_no_more(name: str, rendered: Rendered) -> None:
    assert breaches(compose_of(rendered(name)), nodes_of(name)) == []


@pytest.mark.parametrize("name", EVERY)
def test_no_server_trusts_a_login_without_a_password(name: str, rendered: Rendered) -> None:
    files = [rendered(name) / "compose.yaml", *(rendered(name) / "cluster").iterdir()]
    assert [file.name for file in files if "trust" in file.read_text()] == []


@pytest.mark.parametrize("name", VARIANTS)
def test_an_image_has_a_digest(name: str, rendered: Rendered) -> None:
    backend = VARIANTS[name].answers["backend"]
    assert is_pinned(compose_of(rendered(name))) is (backend not in UNPINNED)


BREACHES: dict[str, tuple[str, dict[str, Any], str]] = {
    "write": ("n1", {"read_only": False}, "n1: its root file system can be written"),
    "setuid": ("n1", {"security_opt": []}, "n1: a program may gain privileges"),
    "capabilities": ("n1", {"cap_drop": ["NET_RAW"]}, "n1: it keeps capabilities"),
    "added": ("setup", {"cap_add": ["SYS_ADMIN"]}, "setup: it gets capabilities"),
    "kept": ("n1", {"cap_add": ["CHOWN"]}, "n1: capabilities are kept for long"),
    "memory": ("n2", {"mem_limit": None}, "n2: no mem_limit"),
    "processes": ("n2", {"pids_limit": 0}, "n2: no pids_limit"),
    "log": ("n3", {"logging": {"driver": "json-file"}}, "n3: its log grows without limit"),
    "port": ("n1", {"ports": ["6432:5432"]}, "n1: port 6432:5432 is open beyond loopback"),
    "every address": (
        "n1",
        {"ports": ["0.0.0.0:6432:5432"]},
        "n1: port 0.0.0.0:6432:5432 is open beyond loopback",
    ),
    "privileged": ("n1", {"privileged": True}, "n1: it is opened to the machine"),
    "network": ("n1", {"network_mode": "host"}, "n1: it shares a network"),
    "trust": (
        "n1",
        {"environment": {"POSTGRES_HOST_AUTH_METHOD": "trust"}},
        "n1: it trusts a login without a password",
    ),
    "root": ("formed", {"user": "0"}, "formed: root runs for long"),
    "root by name": ("n1", {"user": "root:root"}, "n1: root runs for long"),
    "root by default": ("n1", {"user": ""}, "n1: root runs for long"),
    "secrets": ("n1", {"secrets": ["admin_password"]}, "n1: passwords of the machine stay mounted"),
    "other data": (
        "n1",
        {"volumes": ["n1:/cockroach/cockroach-data", "n2:/other"]},
        "n1: writes to ['n1', 'n2']",
    ),
    "no data": ("n1", {"volumes": []}, "n1: writes to []"),
    "other keys": (
        "n1",
        {"volumes": ["n1:/cockroach/cockroach-data", "certs-n2:/certs:ro"]},
        "n1: has the keys of n2",
    ),
    "authority": (
        "n1",
        {"volumes": ["n1:/cockroach/cockroach-data", "authority:/authority:ro"]},
        "n1: has the keys of authority",
    ),
    "root's keys": ("formed", {"volumes": ["certs-root:/certs:ro"]}, "formed: has the keys of root"),
    "data of nodes": ("formed", {"volumes": ["n1:/data:ro"]}, "formed: has ['n1']"),
    "folder": (
        "n1",
        {"volumes": ["n1:/cockroach/cockroach-data", "./cluster:/cluster:ro"]},
        "n1: a folder of the machine stays mounted",
    ),
}


@pytest.mark.parametrize("kind", BREACHES)
def test_a_breach_is_found(kind: str, rendered: Rendered) -> None:
    service, change, expected = BREACHES[kind]
    name = next(name for name, one in VARIANTS.items() if one.answers["backend"] == "cockroachdb")
    compose = copy.deepcopy(compose_of(rendered(name)))
    compose["services"][service] |= change
    assert breaches(compose, nodes_of(name)) == [expected]


# The job that pins the images


def pinned(folder: Path, image: str, digest: str = "sha256:" + "ab" * 32) -> tuple[Path, str]:
    """Return a profile with an image, and a PATH with a `docker` that reports a digest."""
    profile = folder / "template/backends/one/profile.yml"
    profile.parent.mkdir(parents=True)
    profile.write_text(f"title: One\nimage: {image}\nsqlalchemy: any\n")
    return profile, program(folder / "bin", "docker", f'echo "$4" >> {folder}/asked; echo {digest}')


def pin(folder: Path, path: str) -> "subprocess.CompletedProcess[str]":
    """Run the job in a folder."""
    return subprocess.run(
        ["sh", ROOT / ".ci/pin-images", folder],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "before", ["registry.example/one:1.2", f"registry.example/one:1.2@sha256:{'00' * 32}"]
)
def test_the_digest_of_the_tag_is_written(before: str, tmp_path: Path) -> None:
    profile, path = pinned(tmp_path, before)
    result = pin(tmp_path, path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "asked").read_text() == "registry.example/one:1.2\n"
    assert profile.read_text() == (
        f"title: One\nimage: registry.example/one:1.2@sha256:{'ab' * 32}\nsqlalchemy: any\n"
    )


def test_an_answer_that_is_no_digest_is_refused(tmp_path: Path) -> None:
    profile, path = pinned(tmp_path, "registry.example/one:1.2", "unauthorized")
    before = profile.read_text()
    result = pin(tmp_path, path)
    assert result.returncode == 1
    assert "registry.example/one:1.2: unauthorized is no digest" in result.stderr
    assert profile.read_text() == before
