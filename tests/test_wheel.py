"""The wheel carries the template: an installed `scaffold` needs no checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from conftest import DEFAULT, QUESTIONNAIRE, files, git
from scaffold import __version__, environment

PACKED = "scaffold/_template/"


@pytest.fixture(scope="module")
def wheel(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, and the wheel from it, as a release does; return the wheel."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, pristine],
        capture_output=True,
        text=True,
        check=True,
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a new environment, which borrows the dependencies of the running one."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    environment.install(environment.create(folder), "--no-deps", "--no-index", str(wheel))
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


Installed = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def scaffold(installed: Path, tmp_path: Path) -> Installed:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [installed / "bin/scaffold", *arguments],
            cwd=tmp_path,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_wheel_holds_the_template_file_by_file(wheel: Path, pristine: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    names = [name for name in archive.namelist() if name.startswith(PACKED)]
    packed = {name.removeprefix(PACKED): archive.read(name) for name in names}
    kept = ("copier.yml", "hooks/", "template/")
    assert packed == {name: data for name, data in files(pristine).items() if name.startswith(kept)}


def test_the_wheel_puts_one_package_into_an_environment(wheel: Path) -> None:
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert top == {"scaffold", f"scaffold-{__version__}.dist-info"}


def test_the_version_is_that_of_the_wheel(scaffold: Installed, wheel: Path) -> None:
    assert scaffold("--version").stdout == f"scaffold {__version__}\n"
    assert wheel.name.startswith(f"scaffold-{__version__}-")


def test_an_installed_scaffold_makes_the_same_project(
    scaffold: Installed, tmp_path: Path, renders: Path
) -> None:
    result = scaffold("new", "shop")
    assert result.returncode == 0, result.stderr
    ours, theirs = files(tmp_path / "shop"), files(renders / DEFAULT)
    recorded, others = (yaml.safe_load(project.pop(".copier-answers.yml")) for project in (ours, theirs))
    assert ours == theirs
    assert public(recorded) == public(others)
    # The origin of the wheel is unknown, so it records no commit that an update could not find.
    assert "_commit" not in recorded
    assert git(tmp_path / "shop", "status", "--porcelain") == ""


def public(answers: dict[str, str]) -> dict[str, str]:
    return {name: answer for name, answer in answers.items() if not name.startswith("_")}


def test_an_installed_project_migrates_in_an_empty_folder(renders: Path, tmp_path: Path) -> None:
    project, dist, home = tmp_path / "shop", tmp_path / "dist", tmp_path / "home"
    shutil.copytree(renders / DEFAULT, project)
    options = ("--wheel", "--no-isolation", "--outdir", str(dist))
    command = [sys.executable, "-m", "build", *options, str(project)]
    subprocess.run(command, capture_output=True, check=True)
    (built,) = dist.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(built).namelist() if "/migrations/" in name}
    assert {"shop/migrations/env.py", "shop/migrations/versions/0001_ledger.py"} <= packed
    folder = tmp_path / "venv"
    environment.install(environment.create(folder), "--no-deps", "--no-index", str(built))
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.rmtree(project)
    home.mkdir()

    def shop(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "bin/shop"), *arguments]
        return subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)

    try:
        assert shop("up").returncode == 0
        for _ in range(2):
            done = shop("migrate")
            assert (done.returncode, "at 0002" in done.stderr) == (0, True), done.stderr
        refused = shop("revision", "-m", "here")
        assert (refused.returncode, "project's folder" in refused.stderr) == (2, True)
    finally:
        shop("destroy")


def test_an_installed_scaffold_knows_its_backends(scaffold: Installed) -> None:
    assert json.loads(scaffold("backends", "--json").stdout).keys() == QUESTIONNAIRE.profiles().keys()
