"""Run the whole path of a first visit: render, install, start, migrate, verify, stop.

A second demo in the same folder keeps the environment and the cluster's data, which take long to create, and
renders again only if the template or the answers changed. A project that was edited is run without rendering.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from scaffold import environment
from scaffold.errors import BadInput, ScaffoldError
from scaffold.render import STAGING, render

# Digests of the files that the demo wrote; a file with another digest was edited.
RECORD = ".demo.json"
# Seconds between SIGTERM and SIGKILL for an interrupted step; arbitrary.
GRACE = 20.0
COULD_NOT_RUN = 2

Log = Callable[[str], None]
# Says what is being done, while it is done.
Busy = Callable[[str], contextlib.AbstractContextManager[None]]


def _silently(_what: str) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


class StepFailed(ScaffoldError):
    """A step before `verify` failed, so `verify` could not run."""

    exit_code = COULD_NOT_RUN


def run(
    root: Path,
    project: Path,
    given: Mapping[str, Any],
    *,
    keep: bool,
    log: Log,
    busy: Busy = _silently,
) -> int:
    """Run the demo in `project` and return the exit code of `verify`."""
    with _timed("render", log) as note:
        answers, how = prepare(root, project, given)
        note(how)
    program = project / ".venv" / "bin" / answers["package_name"]
    with _timed("install", log) as note:
        note("unchanged" if is_installed(project) else install(project, busy))
    try:
        for step in ("up", "migrate"):
            log(f"--- {program.name} {step}")
            if code := _call(program, step):
                raise StepFailed(f"`{program.name} {step}` exited with {code}. The project is in {project}.")
        log(f"--- {program.name} verify")
        return _call(program, "verify")
    finally:
        if not keep:
            log(f"--- {program.name} down")
            shut_down(program, "down")


def prepare(root: Path, project: Path, given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Render into `project` if that changes a file; return the answers and a note for the log."""
    record = project / RECORD
    known: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    if not known and project.exists() and any(project.iterdir()):
        raise BadInput(f"{project} is not empty, and no demo made it. Name another folder with --dir.")
    before: dict[str, str] = known.get("files", {})
    if edited := [name for name, digest in before.items() if _digest(project / name) != digest]:
        return known["answers"], f"not rendered: {edited[0]} was edited ({len(edited)} in all)"
    project.mkdir(parents=True, exist_ok=True)
    fresh = project / f"{STAGING}{os.urandom(4).hex()}"
    try:
        answers = render(root, fresh, given)
        files = {str(path.relative_to(fresh)): _digest(path) for path in fresh.rglob("*") if path.is_file()}
        if files == before:
            return answers, "unchanged"
        if before:
            # Only the previous version of the project can find its servers and their data.
            shut_down(project / ".venv" / "bin" / known["answers"]["package_name"], "destroy")
        for name in before.keys() - files.keys():
            (project / name).unlink(missing_ok=True)
        for name in files:
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).replace(project / name)
        plain = {name: answer for name, answer in answers.items() if isinstance(answer, str)}
        record.write_text(json.dumps({"answers": plain, "files": files}, indent=1), encoding="utf-8")
        return answers, "rendered again" if before else "rendered"
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def is_installed(project: Path) -> bool:
    """Tell whether the project's present pyproject.toml is installed in its `.venv`."""
    stamp = project / ".venv" / ".installed"
    return stamp.exists() and stamp.read_text(encoding="utf-8") == _state(project)


def install(project: Path, busy: Busy = _silently) -> str:
    """Install the project into its `.venv`; return a note for the log."""
    with busy("installing into .venv, which takes about a minute the first time"):
        python = environment.create(project / ".venv")
        environment.install(python, *environment.requirements(project), "--editable", str(project))
    (project / ".venv" / ".installed").write_text(_state(project), encoding="utf-8")
    # The stamp of the project's own Makefile, which has nothing more to install.
    (project / ".venv" / "ready").touch()
    return "into .venv"


def _state(project: Path) -> str:
    # The path counts too, because the scripts of an environment hold its absolute path.
    return f"{project} {_digest(project / 'pyproject.toml')}"


def shut_down(program: Path, command: str) -> None:
    """Run `down` or `destroy` of a project, if it is installed, with interrupts blocked."""
    if not program.exists():
        return
    with _uninterrupted():
        # Ctrl-C at the terminal reaches every process of the session, so the child gets its own.
        subprocess.run([program, command], cwd=_project_of(program), check=False, start_new_session=True)


def _call(program: Path, *arguments: str) -> int:
    """Run a command of the project and return its exit code; on an interrupt, terminate the command first."""
    process = subprocess.Popen([program, *arguments], cwd=_project_of(program))
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        process.kill()
        raise


def _project_of(program: Path) -> Path:
    return program.parents[2]


def _digest(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


@contextlib.contextmanager
def _timed(step: str, log: Log) -> Iterator[Log]:
    started = time.monotonic()
    notes: list[str] = []
    yield notes.append
    log(f"{step:<8} {', '.join(notes)} ({time.monotonic() - started:.1f} s)")


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore SIGINT, SIGTERM and SIGHUP inside the block; child processes keep the default actions."""

    def ignore(_signum: int, _frame: FrameType | None) -> None:
        pass

    before = {
        number: signal.signal(number, ignore) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
