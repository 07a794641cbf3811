"""A render is all or nothing, and equals that of `copier copy` with the same answers."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import copier
import pytest
import yaml
from packaging.requirements import Requirement

from conftest import DEFAULT, EVERY, ROOT, Scaffold, commit, files, git, names
from scaffold import render, source
from scaffold.errors import BadInput

ANSWERS = ".copier-answers.yml"
ORIGIN = {"_commit", "_src_path"}


def answers_of(project: Path) -> dict[str, str]:
    content: dict[str, str] = yaml.safe_load((project / ANSWERS).read_text())
    return content


def copy(template: Path, project: Path, answers: dict[str, str], ref: str | None = None) -> dict[str, bytes]:
    """Create a project with plain Copier and return its files."""
    copier.run_copy(
        str(template), project, answers, vcs_ref=ref, defaults=True, quiet=True, settings=copier.Settings()
    )
    return files(project)


def same(one: dict[str, bytes], other: dict[str, bytes]) -> bool:
    """Tell whether two projects have the same bytes, apart from the origin in the answers file."""
    answers = [yaml.safe_load(project.pop(ANSWERS)) for project in (one, other)]
    for recorded in answers:
        for key in ORIGIN:
            recorded.pop(key, None)
    return one == other and answers[0] == answers[1]


# The same as `copier copy`


@pytest.mark.parametrize("name", EVERY)
def test_copier_makes_the_same_of_a_plain_folder(
    name: str, renders: Path, pristine: Path, tmp_path: Path
) -> None:
    theirs = copy(pristine, tmp_path / "shop", dict(EVERY[name].answers))
    assert same(files(renders / name), theirs)


def test_the_oldest_copier_that_may_be_used_is_one_and_the_same() -> None:
    """copier.yml refuses an older command, pyproject.toml an older dependency."""
    (wanted,) = (
        Requirement(line)
        for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        if line.startswith("copier")
    )
    oldest = yaml.safe_load((ROOT / "copier.yml").read_text())["_min_copier_version"]
    assert f">={oldest}" in map(str, wanted.specifier)


def test_copier_makes_the_same_of_a_checkout(scaffold: Scaffold, checkout: Path, tmp_path: Path) -> None:
    assert scaffold("new", "shop", root=checkout).returncode == 0
    theirs = copy(checkout, tmp_path / "shop", {}, "HEAD")
    assert answers_of(tmp_path / "shop") == answers_of(scaffold.place / "shop")
    assert same(files(scaffold.place / "shop"), theirs)


def test_copier_makes_the_same_of_a_tag(scaffold: Scaffold, checkout: Path, tmp_path: Path) -> None:
    git(checkout, "tag", "v0.1.0")
    assert scaffold("new", "shop", root=checkout).returncode == 0
    theirs = copy(checkout, tmp_path / "shop", {})
    assert answers_of(tmp_path / "shop")["_commit"] == "v0.1.0"
    assert answers_of(tmp_path / "shop") == answers_of(scaffold.place / "shop")
    assert same(files(scaffold.place / "shop"), theirs)


def test_copier_makes_the_same_of_changes_that_are_not_committed(
    scaffold: Scaffold, checkout: Path, tmp_path: Path
) -> None:
    (checkout / "template/project/new.txt").write_text("not committed\n")
    assert scaffold("new", "shop", root=checkout).returncode == 0
    with pytest.warns(copier.errors.DirtyLocalWarning):
        theirs = copy(checkout, tmp_path / "shop", {}, "HEAD")
    ours = files(scaffold.place / "shop")
    assert ours["new.txt"] == b"not committed\n"
    assert same(ours, theirs)


def test_the_modes_of_the_files_are_the_same_too(scaffold: Scaffold, checkout: Path, tmp_path: Path) -> None:
    assert scaffold("new", "shop", "--no-git", root=checkout).returncode == 0
    copy(checkout, tmp_path / "shop", {}, "HEAD")

    def modes(project: Path) -> dict[str, int]:
        return {name: stat.S_IMODE((project / name).stat().st_mode) for name in [*files(project), ".", "src"]}

    assert modes(scaffold.place / "shop") == modes(tmp_path / "shop")


def test_a_users_own_copier_settings_change_nothing(
    scaffold: Scaffold, renders: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.yml"
    settings.write_text("defaults: {licence: Apache-2.0, author_name: Eve}\n")
    assert scaffold("new", "shop", env={"COPIER_SETTINGS_PATH": str(settings)}).returncode == 0
    assert same(files(scaffold.place / "shop"), files(renders / DEFAULT))


# The recorded origin


def test_a_checkout_is_recorded_with_its_last_commit(scaffold: Scaffold, checkout: Path) -> None:
    (checkout / "template/project/new.txt").write_text("not committed\n")
    result = scaffold("new", "shop", root=checkout)
    recorded = answers_of(scaffold.place / "shop")
    assert recorded["_src_path"] == str(checkout)
    assert recorded["_commit"] == git(checkout, "describe", "--tags", "--always")
    assert "has uncommitted changes" in result.stderr


def test_a_plain_folder_is_recorded_without_a_commit(scaffold: Scaffold, pristine: Path) -> None:
    assert scaffold("new", "shop", root=pristine).returncode == 0
    recorded = answers_of(scaffold.place / "shop")
    assert recorded["_src_path"] == str(pristine)
    assert "_commit" not in recorded


def test_a_folder_inside_somebody_elses_repository_is_a_plain_folder(pristine: Path, tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "vendored").symlink_to(pristine)
    commit(tmp_path, "vendored")
    inside = tmp_path / "inside"
    inside.mkdir()
    assert source.origin(inside) == {}


def test_a_wheel_is_recorded_as_the_tag_of_its_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_source_url", lambda: "https://example.org/scaffold")
    monkeypatch.setattr(source, "__version__", "1.2.3")
    assert source.origin(source.PACKED) == {"_src_path": "https://example.org/scaffold", "_commit": "v1.2.3"}
    monkeypatch.setattr(source, "__version__", "1.2.3.dev4")
    assert source.origin(source.PACKED) == {}


# All or nothing


def test_an_empty_folder_is_filled_and_stays_the_same_folder(scaffold: Scaffold, tmp_path: Path) -> None:
    target = tmp_path / "shop"
    target.mkdir(mode=0o750)
    before = target.stat()
    assert scaffold("new", target).returncode == 0
    assert (target.stat().st_ino, target.stat().st_mode) == (before.st_ino, before.st_mode)
    assert (target / "pyproject.toml").exists()
    assert (target / ".git").exists()


def test_folders_on_the_way_are_made(scaffold: Scaffold) -> None:
    assert scaffold("new", "a/b/shop", "--no-git").returncode == 0
    assert names(scaffold.place) == ["a"]
    assert names(scaffold.place / "a/b") == ["shop"]


def test_a_link_to_an_empty_folder_is_followed(scaffold: Scaffold, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (scaffold.place / "shop").symlink_to(tmp_path / "real")
    assert scaffold("new", "shop", "--no-git").returncode == 0
    assert (scaffold.place / "shop").is_symlink()
    assert (tmp_path / "real/pyproject.toml").exists()


class Broken(Exception):
    pass


@pytest.mark.parametrize("target", ["shop", "a/b/shop", "existing"])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, target: str) -> None:
    (tmp_path / "existing").mkdir()
    with pytest.raises(Broken), render.staged(tmp_path / target) as project:
        project.mkdir()
        (project / "half.txt").write_text("half")
        raise Broken
    assert list(tmp_path.rglob("*")) == [tmp_path / "existing"]


def test_a_target_that_fills_up_meanwhile_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "shop"
    with pytest.raises(BadInput, match=r"theirs\.txt has appeared"), render.staged(target) as project:
        project.mkdir()
        (project / "ours.txt").write_text("ours")
        target.mkdir()
        (target / "theirs.txt").write_text("theirs")
    assert files(tmp_path) == {"shop/theirs.txt": b"theirs"}


def test_an_empty_folder_that_fills_up_meanwhile_gets_nothing_more(tmp_path: Path) -> None:
    target = tmp_path / "shop"
    target.mkdir()
    with pytest.raises(BadInput, match=r"b\.txt has appeared"), render.staged(target) as project:
        project.mkdir()
        (project / "a.txt").write_text("ours")
        (project / "b.txt").write_text("ours")
        (target / "b.txt").write_text("theirs")
    assert files(tmp_path) == {"shop/b.txt": b"theirs"}


@pytest.fixture
def slow(checkout: Path) -> Path:
    """Return a template whose render takes longer than any test waits."""
    (checkout / "template/project/zzz.txt.jinja").write_text(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    return checkout


@contextlib.contextmanager
def rendering(template: Path, place: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a render of a slow template; enter the block after it has written half of the project."""
    process = subprocess.Popen(
        [sys.executable, "-m", "scaffold", "new", "shop"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(template / "generator")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 20
    while not list(place.glob(".scaffold-*/shop/*")):
        assert time.monotonic() < deadline, "the render never started"
        assert process.poll() is None, "the render ended by itself"
        time.sleep(0.02)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interrupted_render_leaves_nothing_behind(
    slow: Path, scaffold: Scaffold, number: signal.Signals, code: int
) -> None:
    with rendering(slow, scaffold.place) as process:
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in stderr
    assert names(scaffold.place) == []
