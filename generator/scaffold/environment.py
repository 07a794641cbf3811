"""Python environments for generated projects: what a project needs, whether it is here, and how to get it."""

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
    """Return what `project` needs to run and to run its tests, as its pyproject.toml says."""
    content: dict[str, Any] = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    declared = content.get("project", {})
    groups = (declared.get("optional-dependencies", {}), content.get("dependency-groups", {}))
    wanted = [*declared.get("dependencies", []), *(line for group in groups for line in group.get("dev", []))]
    return [line for line in wanted if isinstance(line, str)]


def is_satisfied(wanted: Iterable[str]) -> bool:
    """Tell whether this very interpreter has everything that is wanted, in versions that are allowed."""
    from packaging.requirements import Requirement  # noqa: PLC0415 - only `matrix --run` comes here

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
    """Make a virtual environment at `folder`, unless it works already, and return its interpreter."""
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
    """Install into the environment of `python`, as pip's own arguments say."""
    if uv := shutil.which("uv"):
        _run([uv, "pip", "install", "--quiet", "--python", python, *what])
    else:
        _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what])


def _run(command: list[str | Path]) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        said = "\n".join((error.stderr or error.stdout).strip().splitlines()[-5:])
        raise ScaffoldError(f"{' '.join(map(str, command[:4]))} … failed:\n{said}") from error
