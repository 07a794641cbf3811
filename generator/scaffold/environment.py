"""Python environments for generated projects: read the requirements, check them, install them."""

import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scaffold.errors import ScaffoldError


def requirements(project: Path) -> list[str]:
    """Return the requirements of `project` and of its tests, as listed in its pyproject.toml."""
    content: dict[str, Any] = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    declared = content.get("project", {})
    groups = (declared.get("optional-dependencies", {}), content.get("dependency-groups", {}))
    wanted = [*declared.get("dependencies", []), *(line for group in groups for line in group.get("dev", []))]
    return [line for line in wanted if isinstance(line, str)]


def is_satisfied(wanted: Iterable[str]) -> bool:
    """Tell whether the running interpreter has every wanted distribution, in a version that is allowed."""
    from packaging.requirements import Requirement  # noqa: PLC0415 - only `matrix --run` needs it

    for line in wanted:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            return False
        if not requirement.specifier.contains(found, prereleases=True):
            return False
    return True


def create(folder: Path) -> Path:
    """Create a virtual environment at `folder`, unless a working one is there; return its interpreter."""
    python = folder / "bin" / "python"
    if python.exists() and subprocess.run([python, "-c", ""], check=False).returncode == 0:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    if uv := shutil.which("uv"):
        _run([uv, "venv", "--quiet", "--python", sys.executable, folder])
    else:
        _run([sys.executable, "-m", "venv", folder])
    return python


def install(python: Path, *what: str) -> None:
    """Install into the environment of `python`; `what` are arguments of `pip install`."""
    if uv := shutil.which("uv"):
        _run([uv, "pip", "install", "--quiet", "--python", python, *what])
    else:
        _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what])


def _run(command: list[str | Path]) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        output = "\n".join((error.stderr or error.stdout).strip().splitlines()[-5:])
        raise ScaffoldError(f"{' '.join(map(str, command[:4]))} … failed:\n{output}") from error
