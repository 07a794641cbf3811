"""`make` in a project shows what it installs and how long that takes."""

import contextlib
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT
from scaffold.render import render

SETUP = ["make", "--no-print-directory", "setup", f"PYTHON={sys.executable}"]
FIRST = "setup: installing into .venv, which takes about a minute the first time"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("make") / "shop"
    render(ROOT, folder, {"project_name": "shop"})
    return folder


@pytest.fixture
def project(fresh: Path, tmp_path: Path) -> Path:
    return shutil.copytree(fresh, tmp_path / "shop")


def environ(tmp_path: Path, script: str) -> dict[str, str]:
    """Put a program on PATH that stands in for uv, which takes too long."""
    program = tmp_path / "bin/uv"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nmkdir -p .venv\n{script}\n")
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "MAKEFLAGS": ""}


def test_an_installation_has_a_line_before_and_one_after(project: Path, tmp_path: Path) -> None:
    env = environ(tmp_path, "true")
    done = subprocess.run(SETUP, cwd=project, env=env, capture_output=True, text=True, check=True)
    first, last = done.stderr.splitlines()
    assert (first, last.startswith("setup: done in "), done.stdout) == (FIRST, True, "")
    again = subprocess.run(SETUP, cwd=project, env=env, capture_output=True, text=True, check=True)
    assert again.stderr == ""


def test_an_installation_that_fails_is_not_taken_for_done(project: Path, tmp_path: Path) -> None:
    env = environ(tmp_path, "echo no network >&2; exit 3")
    done = subprocess.run(SETUP, cwd=project, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no network" in done.stderr
    assert "setup: done" not in done.stderr
    assert not (project / ".venv/ready").exists()


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_seconds_go_by_on_a_terminal(project: Path, tmp_path: Path, interrupted: bool) -> None:
    env = environ(tmp_path, "sleep 60" if interrupted else "[ $1 = pip ] || sleep 3")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        SETUP, cwd=project, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + 20
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline and (some := os.read(ours, 4096)):
            shown += some
            if interrupted and b"setup: 1 s" in shown:
                os.killpg(process.pid, signal.SIGINT)
    os.close(ours)
    # The terminal has no writer left, so the process that counts has ended, too.
    assert time.monotonic() < deadline
    assert b"\rsetup: 1 s" in shown
    assert (process.wait(timeout=20) == 0) == (not interrupted)
    assert (b"setup: done in " in shown) == (not interrupted)
