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

from conftest import DEFAULT, QUESTIONNAIRE, commit, files, git
from scaffold import __version__, environment

PACKED = "scaffold/_template/"


def build(root: Path, out: Path) -> Path:
    """Build the source distribution, and the wheel from it, as a release does; return the wheel."""
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, root],
        capture_output=True,
        text=True,
        check=True,
    )
    (built,) = out.glob("*.whl")
    return built


def install(wheel: Path, folder: Path) -> Path:
    """Install a wheel into a new environment, which borrows the dependencies of the running one."""
    environment.install(environment.create(folder), "--no-deps", "--no-index", str(wheel))
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # Another project of that name, which may be installed beside ours.
    other = packages / "scaffold-0.1.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: scaffold\nVersion: 0.1.1\nProject-URL: Source, https://example.org/other\n"
    )
    return folder


@pytest.fixture(scope="module")
def wheel(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(pristine, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(wheel, tmp_path_factory.mktemp("installed") / "venv")


Installed = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def scaffold(installed: Path, tmp_path: Path) -> Installed:
    return command_of(installed, tmp_path)


def command_of(installed: Path, tmp_path: Path) -> Installed:
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
    assert top == {"scaffold", f"scaffold_distributed_sql-{__version__}.dist-info"}


def test_the_version_is_that_of_the_wheel(scaffold: Installed, wheel: Path) -> None:
    assert scaffold("--version").stdout == f"scaffold {__version__}\n"
    assert wheel.name.startswith(f"scaffold_distributed_sql-{__version__}-")


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
    assert "template: no version is recorded" in result.stderr
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


def test_a_project_of_a_release_is_updated_from_the_repository_of_the_release(
    checkout: Path, tmp_path: Path
) -> None:
    url = f"file://{checkout}"
    metadata = checkout / "pyproject.toml"
    metadata.write_text(f'{metadata.read_text()}\n[project.urls]\nSource = "{url}"\n')
    commit(checkout, "a release", tag=f"v{__version__}")
    scaffold = command_of(install(build(checkout, tmp_path / "dist"), tmp_path / "venv"), tmp_path)
    made = scaffold("new", "shop", "--no-lock")
    assert (made.returncode, "no version is recorded" in made.stderr) == (0, False), made.stderr
    recorded = yaml.safe_load((tmp_path / "shop/.copier-answers.yml").read_text())
    assert (recorded["_src_path"], recorded["_commit"]) == (url, f"v{__version__}")
    (checkout / "template/project/theirs.txt").write_text("theirs\n")
    commit(checkout, "the next release", tag="v99.0.0")
    updated = scaffold("update", "shop")
    assert updated.returncode == 0, updated.stderr
    assert "  A theirs.txt\n" in updated.stdout
    assert git(tmp_path / "shop", "diff", "--staged", "--name-only").split() == [
        ".copier-answers.yml",
        "theirs.txt",
    ]


def test_a_project_without_a_version_is_told_what_an_update_needs(scaffold: Installed) -> None:
    assert scaffold("new", "shop", "--no-lock").returncode == 0
    refused = scaffold("update", "shop")
    assert (refused.returncode, "does not record the version" in refused.stderr) == (2, True)


def test_python_finds_the_package_beside_a_folder_of_its_name(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "scaffold").mkdir()
    command = [str(installed / "bin/python"), "-m", "scaffold", "--version"]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == f"scaffold {__version__}\n"


def test_an_installed_scaffold_knows_its_backends(scaffold: Installed) -> None:
    assert json.loads(scaffold("backends", "--json").stdout).keys() == QUESTIONNAIRE.profiles().keys()
