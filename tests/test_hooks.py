"""Hooks around a render: each can be run by hand after a plain `copier copy`, and none fails a render."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import DEFAULT, EVERY, ROOT, Scaffold, commit, files, git, names
from scaffold.render import load_hook

HOOKS = {file.stem: load_hook(ROOT, file.stem) for file in sorted((ROOT / "hooks").glob("*.py"))}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "README.md").write_text("a project\n")
    return folder


def program(folder: Path, name: str, script: str) -> str:
    """Write a program of that name; return a PATH on which it comes first."""
    folder.mkdir()
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


# All of them


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_needs_nothing_but_the_standard_library(name: str) -> None:
    # -I and -S hide the environment variables and the installed packages.
    result = subprocess.run(
        [sys.executable, "-I", "-S", ROOT / "hooks" / f"{name}.py", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["git", "lock"])
def test_a_hook_by_hand_does_what_it_says(name: str, project: Path) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "hooks" / f"{name}.py", project], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{name}: ")


@pytest.mark.parametrize("name", ["git", "lock"])
def test_a_hook_by_hand_refuses_what_is_no_folder(name: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "hooks" / f"{name}.py", tmp_path / "none"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "none is not a folder" in result.stderr


# preflight


def test_preflight_passes_where_a_project_can_be_made(tmp_path: Path) -> None:
    assert HOOKS["preflight"].run(tmp_path / "shop") == f"{tmp_path / 'shop'} is free"
    assert names(tmp_path) == []


def test_preflight_refuses_a_folder_that_is_not_empty(project: Path) -> None:
    with pytest.raises(HOOKS["preflight"].Refused, match=r"not empty: it holds README\.md"):
        HOOKS["preflight"].run(project)


def test_preflight_refuses_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(HOOKS["preflight"].Refused, match="File name too long"):
        HOOKS["preflight"].run(tmp_path / ("a" * 300))


def test_preflight_wants_git_only_for_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HOOKS["preflight"].Refused, match="--no-git"):
        HOOKS["preflight"].run(tmp_path / "shop")
    assert HOOKS["preflight"].run(tmp_path / "shop", git=False)


def test_preflight_by_hand_exits_with_2(project: Path) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "hooks/preflight.py", project], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "is not empty" in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_preflight_refuses_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(HOOKS["preflight"].Refused, match="Permission denied"):
        HOOKS["preflight"].run(tmp_path / "shop")


# git


def test_git_commits_everything_on_main(project: Path) -> None:
    assert HOOKS["git"].run(project) == "git: first commit on main"
    assert (
        git(project, "log", "--format=%an <%ae> %s", "main")
        == "Ada <ada@example.org> Start from the scaffold"
    )
    assert git(project, "status", "--porcelain") == ""


def test_git_commits_without_knowing_its_user(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    note = HOOKS["git"].run(project)
    assert "as scaffold <scaffold@localhost>" in note
    assert "git commit --amend --reset-author" in note
    assert git(project, "log", "--format=%an") == "scaffold"
    # The identity is not kept: later commits take the user's own.
    assert "user" not in git(project, "config", "--local", "--list")


def test_git_leaves_a_project_inside_a_repository_to_that(project: Path) -> None:
    git(project.parent, "init", "--quiet")
    note = HOOKS["git"].run(project)
    assert note == f"git: no repository of its own, shop is inside {project.parent}"
    assert names(project) == ["README.md"]
    assert git(project.parent, "status", "--porcelain") == "?? shop/"


# Settings of users that spoil a commit made without care; `{folder}` holds the files that they name.
SETTINGS = {
    "core.excludesFile": "{folder}/ignore",
    "core.attributesFile": "{folder}/attributes",
    "core.autocrlf": "true",
    "core.hooksPath": "{folder}/hooks",
    "init.templateDir": "{folder}/template",
    "commit.cleanup": "strip",
    "core.commentChar": "S",
}


@pytest.fixture
def their_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that gives git some of those settings; nothing that they name does any good."""
    folder = tmp_path / "theirs"
    for hooks in (folder / "hooks", folder / "template" / "hooks"):
        hooks.parent.mkdir(parents=True, exist_ok=True)
        program(hooks, "pre-commit", "exit 1")
    (folder / "template" / "info").mkdir()
    for ignored in (folder / "ignore", folder / "template" / "info" / "exclude"):
        ignored.write_text("*.sql\n.env*\n*.md\n/cluster\nsettings.py\n")
    (folder / "attributes").write_text("* text filter=broken\n")

    def give(*names: str) -> None:
        settings = {name: SETTINGS[name].format(folder=folder) for name in names}
        settings |= {"filter.broken.clean": "false", "filter.broken.required": "true"}
        monkeypatch.setenv("GIT_CONFIG_COUNT", str(len(settings)))
        for number, (name, value) in enumerate(settings.items()):
            monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", name)
            monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)

    return give


@pytest.mark.parametrize("name", SETTINGS)
def test_git_commits_everything_whatever_the_users_settings_are(
    project: Path, their_git: Callable[..., None], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (project / "roles.sql").write_text("SELECT 1;\n")
    (project / "windows.bat").write_bytes(b"echo\r\n")
    (project / "run.sh").write_text("#!/bin/sh\n")
    (project / "run.sh").chmod(0o755)
    their_git(name)
    assert HOOKS["git"].run(project) == "git: first commit on main"
    monkeypatch.delenv("GIT_CONFIG_COUNT")
    assert git(project, "log", "--format=%s") == "Start from the scaffold"
    clone = project.parent / "clone"
    git(project.parent, "clone", "--quiet", str(project), str(clone))
    assert files(clone) == files(project)
    assert os.access(clone / "run.sh", os.X_OK)


def test_git_leaves_everything_staged_if_it_cannot_commit(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "2")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "commit.gpgSign")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
    monkeypatch.setenv("GIT_CONFIG_KEY_1", "gpg.program")
    monkeypatch.setenv("GIT_CONFIG_VALUE_1", "false")
    assert HOOKS["git"].run(project).startswith("git: everything is staged, but not committed (")
    assert git(project, "status", "--porcelain") == "A  README.md"


def test_git_leaves_out_what_the_project_ignores(project: Path) -> None:
    (project / ".gitignore").write_text(".env\n")
    (project / ".env").write_text("SHOP_NODES=secret\n")
    assert HOOKS["git"].run(project) == "git: first commit on main"
    assert git(project, "ls-files").splitlines() == [".gitignore", "README.md"]


def test_git_knows_a_committer_who_is_no_author(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_COMMITTER_NAME", "Ada")
    monkeypatch.setenv("GIT_COMMITTER_EMAIL", "ada@example.org")
    assert "as scaffold <scaffold@localhost>" in HOOKS["git"].run(project)
    assert git(project, "log", "--format=%an, %cn") == "scaffold, Ada"


def test_git_is_not_led_astray_by_the_hook_it_may_run_in(project: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    (other / "file").write_text("theirs")
    commit(other, "theirs")
    script = ROOT / "hooks/git.py"
    subprocess.run(
        [sys.executable, script, project], env={**os.environ, "GIT_DIR": str(other / ".git")}, check=True
    )
    assert git(other, "log", "--format=%s") == "theirs"
    assert git(project, "log", "--format=%s") == "Start from the scaffold"


def test_git_that_is_not_there_is_no_failure(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert HOOKS["git"].run(project) == "git: no first commit, git is not on PATH"


# lock


def test_lock_without_uv_says_what_to_do(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (
        HOOKS["lock"].run(project)
        == "lock: no uv.lock, uv is not on PATH; once it is, run `uv lock` in the project"
    )


def test_lock_runs_uv_in_the_project(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", program(tmp_path / "bin", "uv", 'echo "$@" > uv.lock'))
    assert HOOKS["lock"].run(project) == "lock: uv.lock written"
    assert (project / "uv.lock").read_text() == "lock --quiet\n"


def test_lock_without_a_network_is_no_failure(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", program(tmp_path / "bin", "uv", "echo 'error: dns error' >&2; exit 2"))
    assert HOOKS["lock"].run(project).startswith("lock: no uv.lock (error: dns error); with a network,")


def test_lock_does_not_wait_for_ever(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(HOOKS["lock"], "TIMEOUT", 0.2)
    monkeypatch.setenv("PATH", program(tmp_path / "bin", "uv", "exec sleep 10"))
    assert "uv timed out after 0.2 s" in HOOKS["lock"].run(project)


def test_what_is_locked_is_what_the_project_installs(renders: Path, tmp_path: Path) -> None:
    project, asked = shutil.copytree(renders / DEFAULT, tmp_path / "shop"), tmp_path / "asked"
    path = program(tmp_path / "bin", "uv", f'echo "$1" >> {asked}; mkdir -p .venv')

    def set_up() -> list[str]:
        asked.write_text("")
        subprocess.run(["make", "setup"], cwd=project, env={**os.environ, "PATH": path}, check=True)
        return asked.read_text().split()

    assert set_up() == ["venv", "pip"]
    assert set_up() == []
    # A lock with the same time stamp would not count as newer, and clocks are coarse.
    for file, moment in (("pyproject.toml", 1), (".venv/ready", 2)):
        os.utime(project / file, (moment, moment))
    (project / "uv.lock").touch()
    assert set_up() == ["sync"]
    assert set_up() == []


# Within a render


@pytest.mark.parametrize("asked", [[], ["--lock"]])
def test_what_is_committed_includes_the_lock(asked: list[str], scaffold: Scaffold, tmp_path: Path) -> None:
    path = program(tmp_path / "bin", "uv", 'echo "$@" > uv.lock')
    result = scaffold("new", "shop", *asked, env={"PATH": path})
    assert result.returncode == 0, result.stderr
    assert "uv.lock" in git(scaffold.place / "shop", "ls-files").splitlines()


def test_a_render_without_a_network_says_so_in_one_line(scaffold: Scaffold, tmp_path: Path) -> None:
    path = program(tmp_path / "bin", "uv", "echo 'error: dns error' >&2; exit 2")
    result = scaffold("new", "shop", env={"PATH": path})
    assert result.returncode == 0, result.stderr
    [line] = [line for line in (result.stdout + result.stderr).splitlines() if "uv.lock" in line]
    assert "dns error" in line
    assert "uv.lock" not in git(scaffold.place / "shop", "ls-files").splitlines()


def test_hooks_are_optional(scaffold: Scaffold, tmp_path: Path) -> None:
    path = program(tmp_path / "bin", "uv", 'echo "$@" > uv.lock')
    assert scaffold("new", "shop", "--no-git", "--no-lock", env={"PATH": path}).returncode == 0
    assert not (scaffold.place / "shop/.git").exists()
    assert not (scaffold.place / "shop/uv.lock").exists()


def test_a_project_inside_a_repository_is_made_without_one_of_its_own(scaffold: Scaffold) -> None:
    git(scaffold.place, "init", "--quiet")
    result = scaffold("new", "shop")
    assert result.returncode == 0
    assert "no repository of its own" in result.stderr
    assert not (scaffold.place / "shop/.git").exists()


@pytest.mark.parametrize("name", EVERY)
def test_a_clone_has_every_file_of_a_project_whatever_the_users_settings_are(
    renders: Path, tmp_path: Path, their_git: Callable[..., None], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    project, clone = shutil.copytree(renders / name, tmp_path / "shop"), tmp_path / "clone"
    their_git(*SETTINGS)
    assert HOOKS["git"].run(project).startswith("git: first commit on main")
    monkeypatch.delenv("GIT_CONFIG_COUNT")
    # A shell script with the line ends of Windows does not run in a container.
    git(tmp_path, "-c", "core.autocrlf=true", "clone", "--quiet", str(project), str(clone))
    assert files(clone) == files(project)


def test_a_clone_has_a_package_that_is_named_like_a_folder_of_builds(scaffold: Scaffold) -> None:
    for name in ("build", "dist"):
        made = scaffold("new", name)
        assert made.returncode == 0, made.stderr
        tracked = git(scaffold.place / name, "ls-files").splitlines()
        assert sorted(tracked) == sorted(files(scaffold.place / name))
