"""A local cluster of containers: the nodes of `compose.yaml`, controlled by the `docker` command.

`compose.yaml` has a service for each node, with its name, port and health check, and the secrets `admin_password` and
those of the roles. This module creates the secrets, starts the containers, and explains the errors of Docker.
"""

import json
import re
import secrets
import subprocess
import sys
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from sqlalchemy.engine import URL

from ..connections import connect_all
from . import Cluster, ClusterError, NodeState, NodeStatus, write_private
from .nodes import NODES, ROLES, Node, find_node, node_urls

OLDEST_COMPOSE = (2, 18)
"""Oldest version of Docker Compose that works: `up --wait-timeout` has its name since 2.17.2."""
UP_TIMEOUT = 300.0
"""Seconds until all containers are healthy; 20 times what an idle laptop takes."""
START_TIMEOUT = 120.0
"""Seconds until a single node is healthy."""
COMMAND_TIMEOUT = 120.0
"""Seconds until any other command of Docker ends; longer than a node may take to stop."""

Container: TypeAlias = Mapping[str, Any]
"""Description of a container by `docker inspect`."""
Containers: TypeAlias = Mapping[str, Container]
"""Containers by service."""


class ContainerCluster(Cluster):
    """The nodes as containers. A subclass overrides the hooks that its topology needs."""

    driver = "compose"
    superuser: ClassVar[str] = "admin"
    """Administrator."""
    passwords: ClassVar[Mapping[str, str]] = {
        "application": "app_password",
        "owner": "owner_password",
        "reader": "reader_password",
        "monitor": "monitor_password",
    }
    """Secrets of compose.yaml with the passwords of the roles."""

    @property
    def announcement(self) -> str:
        """Description for the user: the image, and whether it is a local stand-in for the published one."""
        image = self._config["services"][NODES[0].name]["image"]
        label = self._run("image", "inspect", "--format", '{{index .Config.Labels "stand-in"}}', image)
        stand_in = ", here a local stand-in for the published image" if label.stdout.strip() == "true" else ""
        return f"{len(NODES)} containers of {image.partition('@')[0]}{stand_in}"

    def up(self) -> None:
        """Start the containers that are down, and wait until all are healthy."""
        with self._locked():
            self._create_secrets()
            self._pull()
            self._up(timeout=UP_TIMEOUT)
            self._log_in()
            self._write_env()

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
            self._delete_files()

    def status(self) -> list[NodeStatus]:
        """Return role, port and state of every node."""
        containers = self._containers()
        found = {node: self._role_and_state(node, containers) for node in NODES}
        return [
            NodeStatus(node.name, role, self._port(node, containers), state) for node, (role, state) in found.items()
        ]

    def stop_node(self, name: str, *, kill: bool = False) -> None:
        """Stop one node: with `kill` at once, as a power cut would; otherwise by an orderly shutdown."""
        self._docker("compose", "kill" if kill else "stop", self._existing(name))

    def start_node(self, name: str) -> None:
        """Start one node, wait until it is healthy, and write the URLs again."""
        self._up("--no-deps", "--no-recreate", self._existing(name), timeout=START_TIMEOUT)
        self._write_env()

    def admin_urls(self) -> dict[str, URL]:
        """Return the URL of each node for the superuser."""
        return self._urls(self.superuser, self._password("admin_password"), self._containers())

    def _role_urls(self, role: str) -> dict[str, URL]:
        return self._urls(ROLES[role], self._password(self.passwords[role]), self._containers())

    # Hooks

    def _log_in(self) -> None:
        """Log in to every node once: the data may have other passwords than the files. Raise Unreachable if refused."""
        with connect_all(self.urls()), connect_all(self.owner_urls()), connect_all(self.admin_urls(), pinned=True):
            pass

    def _urls(self, username: str, password: str | None, containers: Containers, **query: str) -> dict[str, URL]:
        """Return the URL of each node for one role; a subclass may add parameters."""
        ports = {node.name: self._port(node, containers) for node in NODES}
        return node_urls(ports, username, password, query)

    def _role_and_state(self, node: Node, containers: Containers) -> tuple[str, NodeState]:
        """Return the present role of a node, and whether it is up."""
        container = containers.get(node.name)
        if container is not None and container["State"].get("Paused"):
            return node.role, "paused"
        return node.role, "up" if _is_healthy(container) else "down"

    def _password(self, name: str) -> str | None:
        """Return the content of a secret of compose.yaml."""
        try:
            return self._secrets[name].read_text().strip()
        except FileNotFoundError:
            raise ClusterError(f"There is no {self._secrets[name]}, hence no cluster. Start one with `up`.") from None

    # Content of compose.yaml

    @cached_property
    def _config(self) -> dict[str, Any]:
        if not (self.home.parent / "compose.yaml").exists():
            raise ClusterError(f"There is no compose.yaml in {self.home.parent}. Run this in the project's folder.")
        config: dict[str, Any] = json.loads(self._docker("compose", "config", "--format", "json"))
        return config

    @cached_property
    def _secrets(self) -> dict[str, Path]:
        return {name: Path(secret["file"]) for name, secret in self._config.get("secrets", {}).items()}

    def _create_secrets(self) -> None:
        """Create the passwords that are missing; keep the others, which the data may depend on."""
        admin, name = self._secrets.get("admin_password"), self._config["name"]
        volumes = ("volume", "ls", "--quiet", "--filter", f"label=com.docker.compose.project={name}")
        if admin and not admin.exists() and self._docker(*volumes):
            raise ClusterError(
                f"{admin} is missing, but there is data of a cluster named {name}, which needs it.\n"
                "Put the file back, or delete the data with `docker compose down --volumes`."
            )
        for path in self._secrets.values():
            if path.exists():
                path.chmod(0o600)
            else:
                write_private(path, secrets.token_urlsafe(24))

    def _existing(self, name: str) -> str:
        if find_node(name).name not in self._containers():
            raise ClusterError(f"There is no container for {name}. Start the cluster with `up`.")
        return name

    # Answers of Docker

    def _pull(self) -> None:
        """Pull the images that are missing, with Docker's own progress on the terminal."""
        for image in sorted({service["image"] for service in self._config["services"].values()}):
            if self._run("image", "inspect", image).returncode:
                self._docker("version")  # fails with the reason if the engine does not answer
                pull = ["docker", "pull", image]
                if subprocess.run(pull, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False).returncode:
                    raise ClusterError(
                        f"The image {image} is not here and cannot be pulled; Docker's reason is above.\n"
                        "Check the network, or name another image as compose.yaml says at its head."
                    )

    def _containers(self) -> Containers:
        """Return the container of each service, running or not."""
        ids = self._docker("compose", "ps", "--all", "--quiet").split()
        found = json.loads(self._docker("inspect", *ids)) if ids else []
        return {container["Config"]["Labels"]["com.docker.compose.service"]: container for container in found}

    def _port(self, node: Node, containers: Containers) -> int:
        """Return a node's port on loopback: the one its container has, or the one a new container would get."""
        published = self._config["services"][node.name]["ports"][0]
        if container := containers.get(node.name):
            key = f"{published['target']}/tcp"
            bindings = container["NetworkSettings"]["Ports"].get(key) or container["HostConfig"]["PortBindings"][key]
            return int(bindings[0]["HostPort"])
        return int(published["published"])

    def _run(self, *arguments: str, timeout: float = COMMAND_TIMEOUT) -> "subprocess.CompletedProcess[str]":
        try:
            return subprocess.run(
                ["docker", *arguments],
                cwd=self.home.parent,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except FileNotFoundError:
            raise ClusterError(
                "There is no `docker` on PATH. Install Docker with its compose plugin, or use the embedded cluster."
            ) from None
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"`docker {' '.join(arguments)}` did not end within {timeout:.0f} s. Does the engine still answer?"
            ) from None

    def _up(self, *arguments: str, timeout: float) -> None:
        """Start containers and wait until they are healthy; Docker itself gives up after `timeout` seconds."""
        self._docker(
            *("compose", "up", "--detach", "--wait", "--wait-timeout", f"{timeout:.0f}", *arguments),
            timeout=timeout + COMMAND_TIMEOUT,
        )

    def _docker(self, *arguments: str, timeout: float = COMMAND_TIMEOUT) -> str:
        """Run a command of Docker; return its output, or raise a ClusterError with the reason for its failure."""
        result = self._run(*arguments, timeout=timeout)
        if result.returncode:
            raise ClusterError(self._reason(arguments, result.stderr.strip()))
        return result.stdout

    def _reason(self, arguments: tuple[str, ...], error: str) -> str:
        """Return why a command failed: a defect of Docker itself first, then a defect of the cluster."""
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
            known = self._taken_port(error) or self._failed_service(arguments)
        lines = [line for line in error.splitlines() if not re.match(r" *(Container|Network|Volume) ", line)]
        return known or "\n".join([f"`docker {' '.join(arguments)}` failed:", *lines[-5:]])

    def _taken_port(self, error: str) -> str | None:
        for node in NODES:
            port = self._config["services"][node.name]["ports"][0]["published"]
            # The words around the port differ between engines and platforms.
            if re.search(rf"127\.0\.0\.1:{port}\b.*(already|not available|forbidden)", error):
                return (
                    f"Port {port} of this machine, meant for {node.name}, is taken.\n"
                    f"Free it, or choose another with {node.name.upper()}_PORT in the environment or in .env."
                )
        return None

    def _failed_service(self, arguments: Collection[str]) -> str | None:
        """Return the last lines that the failed job or node logged, and the last error of each node that they name."""
        containers = self._containers()
        # If only one node was to start, the others may be down on purpose.
        wanted = containers.keys() & set(arguments) or containers.keys()
        # A job that failed comes before a node that is not healthy, because it is often the cause.
        for service in sorted(wanted, key=lambda name: (not containers[name]["State"]["ExitCode"], name)):
            container, state = containers[service], containers[service]["State"]
            if state["ExitCode"] or (state["Running"] and not _is_healthy(container)):
                # Docker may have restarted the container already; then the lines before its start tell more.
                lines = self._logs(container, state["StartedAt"]) or self._logs(container, container["Created"])
                lines = lines[-5:]
                for name in sorted({line.split()[0] for line in lines} & (containers.keys() - {service})):
                    log = self._logs(containers[name], state["StartedAt"])
                    # An error that came from another server is quoted at the end of a line.
                    errors = [found[1] for line in log if (found := re.match(r".*\b((?:ERROR|FATAL|PANIC):.*)", line))]
                    lines += [f"{name} logged {error}" for error in errors[-1:]]
                return "\n".join([f"{service} failed:", *lines])
        return None

    def _logs(self, container: Container, since: str) -> list[str]:
        result = self._run("logs", "--tail", "200", "--since", since, container["Id"])
        return [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]


def _is_healthy(container: Container | None) -> bool:
    if container is None or not container["State"]["Running"]:
        return False
    health = container["State"].get("Health")
    return health is None or health["Status"] == "healthy"
