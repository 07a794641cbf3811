"""Nothing secret is shipped: source distributions and Docker build contexts of folders that were used."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from dotenv import dotenv_values
from sqlalchemy.engine import make_url

from conftest import DEFAULT, files
from test_compose import why_not

Used = tuple[Path, list[bytes]]
"""A folder that was used, and what must not be shipped."""
Ground = tuple[Path, list[bytes], set[str]]
"""The same, with the files that it had before."""
MARK = uuid4().hex.encode()
"""Content of the files that a user has and nobody else may get."""
PRIVATE = (
    ".env",
    ".env.local",
    ".env.production",
    ".secrets/admin_password",
    ".cluster/notes",
    "src/.env",
    "src/.env.test",
)
PROJECTS_OF_THE_REPOSITORY = (".demo/shop/.cluster/state.json", "template/project/.env", "tests/.secrets/key")


def plant(folder: Path, *names: str) -> None:
    """Write private files."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(MARK)


@pytest.fixture(scope="module")
def used(renders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Used]:
    """Start the local cluster of a project; yield the project and the passwords of its roles."""
    project = shutil.copytree(renders / DEFAULT, tmp_path_factory.mktemp("used") / "shop")

    def shop(*arguments: str) -> None:
        command = [sys.executable, "-m", "shop", *arguments]
        environment = os.environ | {"PYTHONPATH": "src"}
        subprocess.run(command, cwd=project, env=environment, capture_output=True, check=True, timeout=300)

    plant(project, *PRIVATE)
    (project / ".env").unlink()
    shop("up", "--cluster", "embedded")
    try:
        urls = " ".join(str(value) for value in dotenv_values(project / ".cluster/env").values()).split()
        passwords = {make_url(url.partition("=")[2]).password for url in urls}
        (project / ".env").write_bytes(MARK)
        assert None not in passwords
        yield project, [MARK, *(str(password).encode() for password in passwords)]
    finally:
        (project / ".env").unlink(missing_ok=True)
        shop("destroy")


@pytest.fixture(scope="module")
def repository(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Used:
    """Return a copy of the repository with private files, and what must not be shipped."""
    folder = shutil.copytree(pristine, tmp_path_factory.mktemp("repository") / "scaffold")
    plant(folder, *PRIVATE, *PROJECTS_OF_THE_REPOSITORY)
    return folder, [MARK]


@pytest.fixture(scope="module", params=["project", "repository"])
def ground(request: pytest.FixtureRequest, renders: Path, pristine: Path) -> Ground:
    """Return a folder that was used, its secrets, and the files that it had before."""
    before = renders / DEFAULT if request.param == "project" else pristine
    folder, secrets = request.getfixturevalue("used" if request.param == "project" else "repository")
    return folder, secrets, set(files(before))


def leaks(contents: dict[str, bytes], secrets: list[bytes], allowed: set[str]) -> list[str]:
    """Return the files that hold a secret or that are not among those of the source."""
    return sorted(
        name
        for name, content in contents.items()
        if name not in allowed or any(secret in content for secret in secrets)
    )


def contents_of(folder: Path, names: set[str]) -> dict[str, bytes]:
    """Read files by name."""
    return {name: (folder / name).read_bytes() for name in names}


def unpacked(archive: tarfile.TarFile) -> dict[str, bytes]:
    """Read every regular file of an archive."""
    return {
        member.name: stream.read()
        for member in archive
        if member.isfile() and (stream := archive.extractfile(member)) is not None
    }


def test_a_source_distribution_holds_no_secret(ground: Ground, tmp_path: Path) -> None:
    folder, secrets, before = ground
    build = ["-m", "build", "--no-isolation", "--sdist", "--outdir", str(tmp_path), str(folder)]
    subprocess.run([sys.executable, *build], capture_output=True, check=True)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        found = {name.partition("/")[2]: content for name, content in unpacked(archive).items()}
    assert leaks(found, secrets, before | {"PKG-INFO"}) == []
    assert {"pyproject.toml", "README.md"} <= found.keys()


# Docker build contexts


def ignored(name: str, patterns: list[str]) -> bool:
    """Return True if a .dockerignore keeps a file out of the context; the last match decides."""
    path, out = Path(name), False
    paths = [path.as_posix(), *(parent.as_posix() for parent in path.parents)][:-1]
    for pattern in patterns:
        if any(re.fullmatch(_expression(pattern.lstrip("!").strip("/")), one) for one in paths):
            out = not pattern.startswith("!")
    return out


def _expression(pattern: str) -> str:
    rules = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.findall(r"\*\*/|\*\*|\*|\?|[^*?]+", pattern)
    return "".join(rules.get(part, re.escape(part)) for part in parts)


def context(folder: Path) -> set[str]:
    """Return the names of the files that a build gets, by the rules of .dockerignore."""
    lines = (folder / ".dockerignore").read_text().splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return {name for name in everything(folder) if not ignored(name, patterns)}


def everything(folder: Path) -> set[str]:
    """Return the names of all files in a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_build_context_holds_no_secret(ground: Ground) -> None:
    folder, secrets, before = ground
    found = contents_of(folder, context(folder))
    assert leaks(found, secrets, before) == []
    assert {"pyproject.toml", "README.md"} <= found.keys()


def test_the_engine_copies_the_same_files(ground: Ground, tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    folder, secrets, before = ground
    file = tmp_path / "Dockerfile"
    file.write_text('FROM scratch\nCOPY . /context/\nCMD ["none"]\n')
    name = f"test-context-{uuid4().hex[:8]}"
    try:
        engine("build", "--quiet", "--tag", name, "--file", str(file), str(folder))
        engine("create", "--name", name, name)
        with (tmp_path / "image.tar").open("wb") as out:
            subprocess.run(["docker", "export", name], stdout=out, check=True)
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)
        subprocess.run(["docker", "image", "rm", name], capture_output=True, check=False)
    with tarfile.open(tmp_path / "image.tar") as archive:
        found = unpacked(archive)
    copied = {name.removeprefix("context/"): found[name] for name in found if name.startswith("context/")}
    assert copied.keys() == context(folder)
    assert leaks(copied, secrets, before) == []


def engine(*arguments: str) -> None:
    """Run a command of Docker, which must succeed; the builder of old engines needs no plugin."""
    command = ["docker", *arguments]
    environment = os.environ | {"DOCKER_BUILDKIT": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# The detectors fire


@pytest.mark.parametrize("missing", [".env", ".env.*", ".cluster/", ".secrets/"])
def test_a_rule_that_is_missing_is_found(missing: str, used: Used, tmp_path: Path) -> None:
    project, secrets = used
    copied = shutil.copytree(project, tmp_path / "shop")
    for name, prefix in ((".dockerignore", "**/"), (".gitignore", "")):
        rules = (copied / name).read_text().splitlines()
        (copied / name).write_text("\n".join(rule for rule in rules if rule != prefix + missing) + "\n")
    allowed = everything(copied)
    assert leaks(contents_of(copied, context(copied)), secrets, allowed) != []


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("**/.env.*", ".env.production", ".envrc"),
        ("**/.env.*", "a/b/.env.test", "a/env.test"),
        ("/dist/", "dist/a/b", "src/dist/a"),
        ("*.md", "README.md", "docs/README.md"),
        ("a?c", "abc/deep", "a/c"),
        ("**/*.py", "a/b.py", "a/b.pyc"),
    ],
)
def test_patterns_are_read_as_docker_reads_them(pattern: str, inside: str, outside: str) -> None:
    assert ignored(inside, [pattern])
    assert not ignored(outside, [pattern])
    assert not ignored(inside, [pattern, f"!{inside}"])
