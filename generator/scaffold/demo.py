"""The whole path, as its user would walk it: render, install, start, migrate, verify, stop.

A second demo in the same folder keeps what is expensive, the environment and the cluster's data, and renders
again only if that changes something. A project that was edited since is run as it lies.
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

# What the demo wrote, by file: tells its own files from those of its user.
RECORD = ".demo.json"
# Seconds that an interrupted step gets to stop by itself, before it is stopped.
GRACE = 20.0
COULD_NOT_RUN = 2

Say = Callable[[str], None]


class StepFailed(ScaffoldError):
    """A step before `verify` failed, so there is nothing to verify."""

    exit_code = COULD_NOT_RUN


def run(root: Path, project: Path, given: Mapping[str, Any], *, keep: bool, say: Say) -> int:
    """Run the demo in `project` and return the exit code of `verify`."""
    with _timed("render", say) as note:
        answers, how = prepare(root, project, given)
        note(how)
    program = project / ".venv" / "bin" / answers["package_name"]
    with _timed("install", say) as note:
        note(install(project))
    try:
        for step in ("up", "migrate"):
            say(f"--- {program.name} {step}")
            if code := _call(program, step):
                raise StepFailed(f"`{program.name} {step}` ended with {code}. The project lies in {project}.")
        say(f"--- {program.name} verify")
        return _call(program, "verify")
    finally:
        if not keep:
            say(f"--- {program.name} down")
            end(program, "down")


def prepare(root: Path, project: Path, given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Bring `project` to what the template gives now; return its answers and a word about what was done."""
    record = project / RECORD
    known: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    if not known and project.exists() and any(project.iterdir()):
        raise BadInput(f"{project} is not empty, and no demo made it. Name another folder with --dir.")
    before: dict[str, str] = known.get("files", {})
    if edited := [name for name, digest in before.items() if _digest(project / name) != digest]:
        return known["answers"], f"left as it is: {edited[0]} was edited ({len(edited)} in all)"
    project.mkdir(parents=True, exist_ok=True)
    fresh = project / f"{STAGING}{os.urandom(4).hex()}"
    try:
        answers = render(root, fresh, given)
        files = {str(path.relative_to(fresh)): _digest(path) for path in fresh.rglob("*") if path.is_file()}
        if files == before:
            return answers, "unchanged"
        if before:
            # Servers and data belong to the project as it was, which alone knows where they are.
            end(project / ".venv" / "bin" / known["answers"]["package_name"], "destroy")
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


def install(project: Path) -> str:
    """Install the project into `.venv` inside it, unless that was done for the same pyproject.toml."""
    stamp = project / ".venv" / ".installed"
    # The folder counts too: an environment that was moved has scripts that start nothing.
    state = f"{project} {_digest(project / 'pyproject.toml')}"
    python = environment.create(project / ".venv")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == state:
        return "unchanged"
    environment.install(python, *environment.requirements(project), "--editable", str(project))
    stamp.write_text(state, encoding="utf-8")
    return "into .venv"


def end(program: Path, command: str) -> None:
    """Bring the cluster down, whatever happened before, and let nobody interrupt that."""
    if not program.exists():
        return
    with _uninterrupted():
        # Its own session: Ctrl-C at the terminal goes to every process of ours.
        subprocess.run([program, command], cwd=_project_of(program), check=False, start_new_session=True)


def _call(program: Path, *arguments: str) -> int:
    """Run a command of the project and return its exit code; an interrupt is passed on, not just survived."""
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
def _timed(step: str, say: Say) -> Iterator[Say]:
    started = time.monotonic()
    notes: list[str] = []
    yield notes.append
    say(f"{step:<8} {', '.join(notes)} ({time.monotonic() - started:.1f} s)")


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Swallow interrupts for as long as this takes; a child gets the default actions all the same."""

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
