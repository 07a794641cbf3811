"""A demo renders only changes, keeps an edited project, and always stops the cluster."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from conftest import BACKEND, ROOT, files, names
from scaffold import cli, demo, environment
from scaffold.errors import BadInput

GIVEN = {"project_name": "shop"}

# Stand-in for the console script of a generated project: it records its arguments.
PROGRAM = """#!/bin/sh
echo "$1" >> calls
case "$1" in
  {step}) {action} ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepare a demo whose environment holds a stand-in for the project's command."""
    folder = tmp_path / "demo"
    monkeypatch.setattr(demo, "install", lambda *_: "pretended")
    demo.prepare(ROOT, folder, GIVEN)
    stand_in(folder)
    return folder


def stand_in(project: Path, step: str = "none", action: str = ":") -> None:
    program = project / ".venv/bin/shop"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(PROGRAM.format(step=step, action=action))
    program.chmod(0o755)


def calls(project: Path) -> list[str]:
    return (project / "calls").read_text().split()


def without_installing(project: Path) -> list[str]:
    """Return the command of a demo that takes its project for installed."""
    (project / ".venv/bin/python").symlink_to(sys.executable)
    script = (
        "import sys; from scaffold import cli, demo\n"
        "demo.install = lambda *_: 'pretended'\n"
        f"sys.argv = ['scaffold', 'demo', '--dir', {str(project)!r}]\n"
        "cli.main()\n"
    )
    return [sys.executable, "-c", script]


def run(project: Path, *, keep: bool = False) -> int:
    return demo.run(ROOT, project, GIVEN, keep=keep, log=lambda _line: None)


def test_a_demo_walks_the_whole_path(project: Path) -> None:
    assert run(project) == 0
    assert calls(project) == ["up", "migrate", "verify", "down"]


def test_a_demo_says_what_it_does(project: Path) -> None:
    output: list[str] = []
    demo.run(ROOT, project, GIVEN, keep=False, log=output.append)
    assert [line.split()[0] for line in output[:2]] == ["render", "install"]
    assert output[2:] == [f"--- shop {step}" for step in ("up", "migrate", "verify", "down")]


def test_a_cluster_can_be_kept(project: Path) -> None:
    run(project, keep=True)
    assert calls(project) == ["up", "migrate", "verify"]


@pytest.mark.parametrize("code", [1, 2])
def test_a_demo_ends_as_its_verification_does(project: Path, code: int) -> None:
    stand_in(project, "verify", f"exit {code}")
    assert run(project) == code
    assert calls(project)[-1] == "down"


@pytest.mark.parametrize("step", ["up", "migrate"])
def test_a_step_that_fails_is_named_and_the_cluster_stopped(project: Path, step: str) -> None:
    stand_in(project, step, "exit 7")
    with pytest.raises(demo.StepFailed, match=f"`shop {step}` exited with 7"):
        run(project)
    assert calls(project)[-1] == "down"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_stops_its_cluster(project: Path, number: signal.Signals) -> None:
    stand_in(project, "migrate", "exec sleep 30")
    process = subprocess.Popen(
        without_installing(project),
        env={**os.environ, "PYTHONPATH": str(ROOT / "generator")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 20
    while not (project / "calls").exists() or "migrate" not in calls(project):
        assert time.monotonic() < deadline, "the demo never came to migrate"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in output
    assert calls(project) == ["up", "migrate", "down"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_an_installation_shows_what_is_done(
    project: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    """With the seconds that go by on a terminal, and as one plain line elsewhere."""
    monkeypatch.undo()
    monkeypatch.setattr(environment, "create", lambda folder: folder)
    monkeypatch.setattr(environment, "install", lambda *_: time.sleep(1.5))
    output = io.StringIO()
    out = Console(file=output, force_terminal=is_terminal, width=80)
    demo.install(project, lambda what: cli._busy(out, what))
    shown = output.getvalue()
    assert "installing into .venv" in shown
    assert ("0:00:01" in shown) == is_terminal
    assert ("\x1b" in shown) == is_terminal
    assert demo.is_installed(project)
    (project / "pyproject.toml").write_text("changed")
    assert not demo.is_installed(project)


def test_a_demo_ends_with_steps_that_can_be_pasted(project: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "generator")}
    done = subprocess.run(
        without_installing(project),
        cwd=project.parent,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    steps = done.stdout.split("Next, in this project or in one of your own:\n")[1].splitlines()
    assert steps[0] == f"  cd {project.name}"
    assert [f"  {step}" for step in cli.NEXT_STEPS] == steps[1:-1]
    assert steps[-1] == f"  scaffold new NAME --backend {BACKEND}"


# A second demo in the same folder


def test_nothing_is_rendered_again_if_nothing_changed(project: Path) -> None:
    before = {name: (project / name).stat().st_mtime_ns for name in files(project)}
    assert demo.prepare(ROOT, project, GIVEN)[1] == "unchanged"
    assert {name: (project / name).stat().st_mtime_ns for name in files(project)} == before
    assert not [name for name in names(project) if name.startswith(".scaffold-")]


def test_a_changed_template_is_rendered_again_and_starts_from_an_empty_cluster(
    project: Path, pristine: Path, tmp_path: Path
) -> None:
    template = tmp_path / "template"
    subprocess.run(["cp", "-R", pristine, template], check=True)
    (template / "template/project/new.txt").write_text("new")
    assert demo.prepare(template, project, GIVEN)[1] == "rendered again"
    assert calls(project) == ["destroy"]
    assert (project / "new.txt").read_text() == "new"
    assert demo.prepare(ROOT, project, GIVEN)[1] == "rendered again"
    assert not (project / "new.txt").exists()


def test_an_edited_project_is_run_as_it_lies(project: Path) -> None:
    edited = project / "alembic.ini"
    edited.write_text("mine")
    answers, output = demo.prepare(ROOT, project, GIVEN)
    assert output.startswith("not rendered: alembic.ini was edited")
    assert answers["package_name"] == "shop"
    assert edited.read_text() == "mine"


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="no demo made it"):
        demo.prepare(ROOT, tmp_path, GIVEN)
    assert names(tmp_path) == ["mine.txt"]
