"""The nodes of `compose.yaml` in containers, driven through the `docker` command.

`compose.yaml` says what runs and when it is ready. This makes the passwords that it asks for, starts it, and turns what
Docker answers into a sentence.
"""

import json
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from ...settings import URL_SCHEME
from . import HOME, Cluster, ClusterError, NodeStatus, write_private
from .nodes import DATABASE, NODES, Node, find_node

SUPERUSER = "admin"
OLDEST_COMPOSE = (2, 18)
"""`up --wait-timeout` has its name since 2.17.2."""
UP_TIMEOUT = 300.0
"""For the containers to become healthy: 20 times what an idle laptop takes."""
COMMAND_TIMEOUT = 120.0
"""For any other answer of Docker's; longer than a node may take to stop. In seconds, like all durations here."""


class Compose(Cluster):
    """The nodes as containers."""

    kind = "compose"

    def __init__(self, home: Path = HOME) -> None:
        super().__init__(home)
        self.project = self.home.parent

    @property
    def announcement(self) -> str:
        """Which image the nodes run, and whether it is the published one."""
        image = self._service(NODES[0].name)["image"]
        label = self._run("image", "inspect", "--format", '{{index .Config.Labels "stand-in"}}', image)
        stand_in = ", here a local stand-in for the published image" if label.stdout.strip() == "true" else ""
        return f"{len(NODES)} containers of {image}{stand_in}"

    def up(self) -> None:
        """Start what is not running, and wait until the nodes form a cluster."""
        with self._locked():
            self._make_secrets()
            self._pull()
            self._docker(
                *("compose", "up", "--detach", "--wait", "--wait-timeout", f"{UP_TIMEOUT:.0f}"),
                timeout=UP_TIMEOUT + COMMAND_TIMEOUT,
            )
            self._publish()

    def down(self) -> None:
        """Remove the containers and keep their data."""
        with self._locked():
            self._docker("compose", "down")

    def destroy(self) -> None:
        """Remove the containers, their data and the passwords."""
        with self._locked():
            self._docker("compose", "down", "--volumes")
            for path in self._secrets.values():
                path.unlink(missing_ok=True)
            for name in ("env", "kind"):
                (self.home / name).unlink(missing_ok=True)

    def status(self) -> list[NodeStatus]:
        """Every node and whether it passes its health check."""
        containers = self._containers()
        return [
            NodeStatus(
                node.name,
                node.role,
                self._port(node, containers),
                "up" if _is_healthy(containers.get(node.name)) else "down",
            )
            for node in NODES
        ]

    def stop_node(self, name: str, *, kill: bool = False) -> None:
        """Stop one container; with `kill` as a power cut would."""
        self._docker("compose", "kill" if kill else "stop", self._existing(name))

    def start_node(self, name: str) -> None:
        """Start one container again and wait until it is healthy."""
        self._docker("compose", "up", "--detach", "--no-deps", "--no-recreate", "--wait", self._existing(name))
        self._publish()

    def urls(self) -> dict[str, URL]:
        """The URLs for the application's role."""
        return self._urls(DATABASE, self._password("app_password"))

    def admin_urls(self) -> dict[str, URL]:
        """The URLs for the superuser."""
        return self._urls(SUPERUSER, self._password("admin_password"))

    def _urls(self, username: str, password: str) -> dict[str, URL]:
        containers = self._containers()
        return {
            node.name: URL.create(URL_SCHEME, username, password, "127.0.0.1", self._port(node, containers), DATABASE)
            for node in NODES
        }

    # What the compose file says --------------------------------------------------------------------------------

    @cached_property
    def _config(self) -> dict[str, Any]:
        if not (self.project / "compose.yaml").exists():
            raise ClusterError(f"There is no compose.yaml in {self.project}. Run this in the project's folder.")
        config: dict[str, Any] = json.loads(self._docker("compose", "config", "--format", "json"))
        return config

    def _service(self, name: str) -> dict[str, Any]:
        service: dict[str, Any] = self._config["services"][name]
        return service

    @cached_property
    def _secrets(self) -> dict[str, Path]:
        return {name: Path(secret["file"]) for name, secret in self._config.get("secrets", {}).items()}

    def _make_secrets(self) -> None:
        """Make the passwords that are missing; keep the others, which the data may depend on.

        Raises:
            ClusterError: there are nodes already, and the password that opens them is lost.
        """
        admin = self._secrets["admin_password"]
        ours = f"label=com.docker.compose.project={self._config['name']}"
        if not admin.exists() and self._docker("volume", "ls", "--quiet", "--filter", ours):
            raise ClusterError(
                f"{admin} is not there, but the data of a cluster named {self._config['name']} is, which needs it.\n"
                "Put the file back, or delete the data with `docker compose down --volumes`."
            )
        for path in self._secrets.values():
            if path.exists():
                path.chmod(0o600)
            else:
                write_private(path, secrets.token_urlsafe(24))

    def _password(self, name: str) -> str:
        try:
            return self._secrets[name].read_text().strip()
        except FileNotFoundError:
            raise ClusterError(f"There is no {self._secrets[name]}, hence no cluster. Start one with `up`.") from None

    def _existing(self, name: str) -> str:
        if find_node(name).name not in self._containers():
            raise ClusterError(f"There is no container for {name}. Start the cluster with `up`.")
        return name

    # What Docker says ------------------------------------------------------------------------------------------

    def _pull(self) -> None:
        """Fetch the images that are not here, with Docker's own progress on the terminal."""
        for image in sorted({service["image"] for service in self._config["services"].values()}):
            if self._run("image", "inspect", image).returncode:
                self._docker("version")  # an engine that does not answer has no images either
                pull = ["docker", "pull", image]
                if subprocess.run(pull, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False).returncode:
                    raise ClusterError(
                        f"The image {image} is not here and cannot be pulled; Docker's reason is above.\n"
                        "Check the network, or name another image as compose.yaml says at its head."
                    )

    def _containers(self) -> dict[str, dict[str, Any]]:
        """What Docker knows of each service's container, running or not."""
        ids = self._docker("compose", "ps", "--all", "--quiet").split()
        found = json.loads(self._docker("inspect", *ids)) if ids else []
        return {container["Config"]["Labels"]["com.docker.compose.service"]: container for container in found}

    def _port(self, node: Node, containers: Mapping[str, dict[str, Any]]) -> int:
        """The port on loopback: that of the container, which keeps it while stopped, or the one it would get."""
        published = self._service(node.name)["ports"][0]
        if container := containers.get(node.name):
            key = f"{published['target']}/tcp"
            bindings = container["NetworkSettings"]["Ports"].get(key) or container["HostConfig"]["PortBindings"][key]
            return int(bindings[0]["HostPort"])
        return int(published["published"])

    def _run(self, *arguments: str, timeout: float = COMMAND_TIMEOUT) -> "subprocess.CompletedProcess[str]":
        if not shutil.which("docker"):
            raise ClusterError(
                "There is no `docker` on PATH. Install Docker with its compose plugin, or use the embedded cluster."
            )
        try:
            return subprocess.run(
                ["docker", *arguments],
                cwd=self.project,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"`docker {' '.join(arguments)}` did not end within {timeout:.0f} s. Does the engine still answer?"
            ) from None

    def _docker(self, *arguments: str, timeout: float = COMMAND_TIMEOUT) -> str:
        """What a command of Docker's prints.

        Raises:
            ClusterError: it failed, for the reason in the message.
        """
        result = self._run(*arguments, timeout=timeout)
        if result.returncode:
            raise ClusterError(self._reason(arguments, result.stderr.strip()))
        return result.stdout

    def _reason(self, arguments: tuple[str, ...], complaint: str) -> str:
        """Why a command failed: first what is wrong with Docker itself, then what is wrong with the cluster."""
        version = self._run("compose", "version", "--short")
        numbers = tuple(int(number) for number in re.findall(r"\d+", version.stdout)[:2])
        if version.returncode or not numbers:
            return "Docker has no compose plugin here. Install docker-compose-plugin, or use the embedded cluster."
        if numbers < OLDEST_COMPOSE:
            oldest = ".".join(map(str, OLDEST_COMPOSE))
            return f"Docker Compose {version.stdout.strip()} is too old. Install {oldest} or newer."
        engine = self._run("version", "--format", "{{.Server.Version}}")
        if engine.returncode:
            remedy = "Join the group `docker`" if "permission denied" in engine.stderr else "Start it"
            return f"The Docker engine does not answer: {engine.stderr.strip()}\n{remedy}, and try again."
        known = None
        if arguments[:2] == ("compose", "up"):
            known = self._taken_port(complaint) or self._failed_service(arguments)
        return known or f"`docker {' '.join(arguments)}` failed:\n{_without_progress(complaint)}"

    def _taken_port(self, complaint: str) -> str | None:
        for node in NODES:
            port = self._service(node.name)["ports"][0]["published"]
            # Engines and platforms differ in the words around it.
            if re.search(rf"127\.0\.0\.1:{port}\b.*(already|not available|forbidden)", complaint):
                return (
                    f"Port {port} of this machine, meant for {node.name}, is taken.\n"
                    f"Free it, or choose another with {node.name.upper()}_PORT in the environment or in .env."
                )
        return None

    def _failed_service(self, arguments: Collection[str]) -> str | None:
        """The last words of the job or node that failed, and the last error of each node that it complains of."""
        containers = self._containers()
        # Where one node was to start, the others may be down on purpose.
        wanted = containers.keys() & set(arguments) or containers.keys()
        # A job that ended badly before what is merely not healthy, often because of it.
        for service in sorted(wanted, key=lambda name: (not containers[name]["State"]["ExitCode"], name)):
            state = containers[service]["State"]
            if state["ExitCode"] or (state["Running"] and not _is_healthy(containers[service])):
                words = self._logs(containers[service], since=state["StartedAt"])[-5:]
                if not words:  # Docker has already started it again
                    words = self._logs(containers[service], since=containers[service]["Created"])[-5:]
                for name in sorted({line.split()[0] for line in words} & (containers.keys() - {service})):
                    log = self._logs(containers[name], since=state["StartedAt"])
                    # An error that came from another server is quoted at the end.
                    errors = [found[1] for line in log if (found := re.match(r".*\b((?:ERROR|FATAL|PANIC):.*)", line))]
                    words += [f"{name} logged {error}" for error in errors[-1:]]
                return "\n".join([f"{service} failed:", *words])
        return None

    def _logs(self, container: Mapping[str, Any], since: str) -> list[str]:
        result = self._run("logs", "--tail", "200", "--since", since, container["Id"])
        return [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]


def _is_healthy(container: dict[str, Any] | None) -> bool:
    if container is None or not container["State"]["Running"]:
        return False
    health = container["State"].get("Health")
    return health is None or health["Status"] == "healthy"


def _without_progress(complaint: str) -> str:
    lines = [line for line in complaint.splitlines() if not re.match(r" *(Container|Network|Volume) ", line)]
    return "\n".join(lines[-5:])
