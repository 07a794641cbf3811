"""Promises that the compose file of a project keeps for each of its containers."""

import re
from collections.abc import Iterator
from typing import Any

Service = dict[str, Any]

CAPABILITIES = {"CHOWN", "DAC_OVERRIDE", "FOWNER"}
"""Capabilities with which root hands files to the servers' user."""
REFUSED = {
    "privileged",
    "devices",
    "pid",
    "ipc",
    "userns_mode",
    "cgroup_parent",
    "extra_hosts",
    "env_file",
    "build",
}
"""Keys that open a container to the machine."""
IMAGE = re.compile(r"\$\{[A-Z]+_IMAGE:-[a-z0-9./-]+:[\w.-]+(?P<digest>@sha256:[0-9a-f]{64})?\}")


def breaches(compose: dict[str, Any], nodes: set[str]) -> list[str]:
    """Return each promise that a compose file breaks.

    Args:
        compose: the parsed file.
        nodes: services that are nodes of the cluster.
    """
    services: dict[str, Service] = compose["services"]
    found = [f"{name}: {breach}" for name, service in services.items() for breach in _of_one(service)]
    found += [f"{name}: several images" for name, one in services.items() if one["image"] != _image(compose)]
    return found + list(_of_volumes(services, nodes))


def is_pinned(compose: dict[str, Any]) -> bool:
    """Return True if the image has a digest."""
    match = IMAGE.fullmatch(_image(compose))
    return bool(match and match["digest"])


def _image(compose: dict[str, Any]) -> str:
    return str(next(iter(compose["services"].values()))["image"])


def _of_one(service: Service) -> Iterator[str]:
    options = service.get("logging", {}).get("options", {})
    promises = {
        "its root file system can be written": service.get("read_only") is True,
        "a program may gain privileges": "no-new-privileges:true" in service.get("security_opt", []),
        "it keeps capabilities": service.get("cap_drop") == ["ALL"],
        "no mem_limit": service.get("mem_limit"),
        "no pids_limit": service.get("pids_limit"),
        "its log grows without limit": {"max-size", "max-file"} <= options.keys(),
        f"{service['image']} is not a tag that the environment can replace": IMAGE.fullmatch(
            service["image"]
        ),
        "it shares a network": service.get("network_mode", "none") == "none",
        "it trusts a login without a password": "trust" not in str(service.get("environment", {})),
        "it commands the engine": "docker.sock" not in str(service.get("volumes", [])),
        "it is opened to the machine": not REFUSED & service.keys(),
    }
    yield from (breach for breach, kept in promises.items() if not kept)
    ports = [str(port) for port in service.get("ports", [])]
    opened = (port for port in ports if not port.startswith("127.0.0.1:"))
    yield from (f"port {port} is open beyond loopback" for port in opened)
    yield from _of_jobs(service)


def _of_jobs(service: Service) -> Iterator[str]:
    """Yield what only a container that ends soon may have."""
    if set(service.get("cap_add", [])) - CAPABILITIES:
        yield "it gets capabilities"
    if "restart" not in service:
        return
    if str(service.get("user") or "0").partition(":")[0] in ("0", "root"):
        yield "root runs for long"
    if service.get("cap_add"):
        yield "capabilities are kept for long"
    if service.get("secrets"):
        yield "passwords of the machine stay mounted"
    if any(_host(mount).startswith((".", "/", "~")) for mount in service.get("volumes", [])):
        yield "a folder of the machine stays mounted"


def _of_volumes(services: dict[str, Service], nodes: set[str]) -> Iterator[str]:
    """Yield what a container has of another's data or keys."""
    mounts = {name: service.get("volumes", []) for name, service in services.items() if "restart" in service}
    writable = {
        name: {_host(one) for one in found if not one.endswith(":ro")} for name, found in mounts.items()
    }
    for node in nodes:
        if writable.get(node) != {node}:
            yield f"{node}: writes to {sorted(writable.get(node, ()))}"
    for name in mounts.keys() - nodes:
        shared = {_host(one) for one in mounts[name]} & {
            _host(one) for other, found in mounts.items() if other != name for one in found
        }
        if shared or writable[name]:
            yield f"{name}: has {sorted(shared | writable[name])}"
    for name, service in services.items():
        for volume in map(_host, service.get("volumes", [])):
            owner = volume.removeprefix("certs-")
            if name != "setup" and (
                volume == "authority" or (volume != owner and name != {"root": "init"}.get(owner, owner))
            ):
                yield f"{name}: has the keys of {owner}"


def _host(mount: str) -> str:
    return mount.partition(":")[0]
