"""Variants of the template: derive them from copier.yml and the profiles, render them, run their tests.

A question that depends on the backend is crossed with it. A question that a profile lists under `crossed`
takes every value where all others have their defaults, and its last value, which adds the most, elsewhere.
Any other question with choices changes a file or two, so each of its values is tried once: on the first
backend, or on the backend whose profile lists the question under `once`.
"""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from scaffold import environment
from scaffold.errors import BadInput
from scaffold.questions import Questionnaire
from scaffold.render import render

# Runs at the same time. Two leave two cores idle for a fifth of the time, while clusters start and stop.
AT_ONCE = 3
# Time limit for the tests of one project, in seconds; arbitrary, many times their duration.
TIMEOUT = 3600.0
# Seconds between SIGINT and SIGKILL, in which interrupted tests can stop their servers; arbitrary.
GRACE = 20.0

Tests: TypeAlias = "subprocess.Popen[bytes]"


@dataclass(frozen=True)
class Variant:
    """One combination of answers."""

    name: str
    answers: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """Result of the tests of one variant: PASS, FAIL or SKIP, with the summary line of pytest."""

    variant: str
    status: str
    seconds: float
    summary: str
    log: Path

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as `--json` prints it."""
        return {**asdict(self), "log": str(self.log)}


def variants(questionnaire: Questionnaire) -> list[Variant]:
    """Return every variant of the template, the default one first."""
    found = [
        variant for backend in questionnaire.profiles() for variant in _of_backend(questionnaire, backend)
    ]
    others = [name for name in questionnaire.askable if "backend" not in questionnaire.dependencies(name)]
    return found + list(_one_factor(questionnaire, found[0], others))


def render_all(root: Path, chosen: list[Variant], folder: Path, report: Callable[[Variant], None]) -> None:
    """Render each variant into `folder`/<name of the variant>, and report it."""
    for variant in chosen:
        target = folder / variant.name
        if target.exists():
            raise BadInput(f"{target} exists. Name a folder without renders, or delete this one.")
    for variant in chosen:
        render(root, folder / variant.name, variant.answers)
        report(variant)


def run_all(chosen: list[Variant], folder: Path) -> Iterator[Outcome]:
    """Run the tests of each variant, a few at a time, and yield the outcomes in order."""
    pythons = [interpreter(folder / variant.name, folder / ".venv") for variant in chosen]
    running: set[Tests] = set()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            yield from pool.map(
                lambda one: run_tests(folder / one[0].name, one[1], running),
                zip(chosen, pythons, strict=True),
            )
        except BaseException:
            stop(running)
            raise


def stop(running: set[Tests]) -> None:
    """Stop running tests. Each has a session of its own, which Ctrl-C at the terminal does not reach."""
    for process in list(running):
        _stop(process)


def run_tests(
    project: Path,
    python: str,
    running: set[Tests] | None = None,
    *,
    modules: Iterable[str] = (),
    environ: Mapping[str, str] = os.environ,
    timeout: float = TIMEOUT,
) -> Outcome:
    """Run the tests of one project as its `make test` does, and return the outcome.

    The output goes to a log of the project's name beside the project.

    Args:
        project: folder of the project.
        python: interpreter of an environment that has the requirements of the project.
        running: holds the process while it runs, so that another thread can `stop` it.
        modules: paths of test modules; all of them if empty.
        environ: environment variables of the process.
        timeout: seconds after which the tests are stopped and count as failed.
    """
    log = project.parent / f"{project.name}.log"
    needed = _python_needed(project)
    if sys.version_info[: len(needed)] < needed:
        return Outcome(project.name, "SKIP", 0.0, f"needs Python {'.'.join(map(str, needed))}", log)
    started = time.monotonic()
    running = set() if running is None else running
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *modules],
            cwd=project,
            env={**environ, "PYTHONPATH": "src"},
            stdout=output,
            stderr=subprocess.STDOUT,
            # One session for pytest and the servers that it starts, so that one signal reaches all of them.
            start_new_session=True,
        )
        running.add(process)
        try:
            code: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _stop(process)
            running.discard(process)
    summary = _summary(log.read_text(encoding="utf-8", errors="replace")) or f"pytest exited with {code}"
    if code is None:
        summary = f"stopped after {timeout:g} s: {summary}"
    status = "PASS" if code == 0 else "FAIL"
    return Outcome(project.name, status, time.monotonic() - started, summary, log)


def _summary(output: str) -> str:
    """Return pytest's line of counts; after an error at exit, more lines follow it."""
    counts = re.findall(r"^=* ?(\d+ (?:passed|failed|skipped|error).*?) ?=*$", output, re.MULTILINE)
    return (counts or output.strip().splitlines() or [""])[-1]


def _stop(process: Tests) -> None:
    """Interrupt pytest, so that it stops its servers; after the grace period, kill the whole session."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def _of_backend(questionnaire: Questionnaire, backend: str) -> Iterator[Variant]:
    base: dict[str, Any] = {"project_name": "shop", "backend": backend}
    answers = questionnaire.resolve(base)
    listed = answers["profile"].get("crossed", [])
    once = answers["profile"].get("once", [])
    crossed = {}
    last = {}
    for name in questionnaire.askable:
        values = _values(questionnaire, name, answers)
        depends = "backend" in questionnaire.dependencies(name)
        if values and name not in base and name not in once and (depends or name in listed):
            crossed[name] = values
            if not depends:
                last[name] = values[-1]
    found = []
    for combination in itertools.product(*crossed.values()):
        chosen = dict(zip(crossed, combination, strict=True))
        plain = all(chosen[name] == answers[name] for name in chosen if name not in last)
        if not plain and any(chosen[name] != value for name, value in last.items()):
            continue
        words = [_word(name, value) for name, value in chosen.items()]
        found.append(Variant("-".join([backend, *words]), {**base, **chosen}))
    yield from found
    yield from _one_factor(questionnaire, found[0], once)


def _one_factor(questionnaire: Questionnaire, base: Variant, names: list[str]) -> Iterator[Variant]:
    answers = questionnaire.resolve(base.answers)
    for name in names:
        if name not in base.answers:
            for value in _values(questionnaire, name, answers)[1:]:
                word = _word(name, value) if isinstance(value, bool) else _slug(f"{name}-{value}")
                yield Variant(f"{base.name}-{word}", {**base.answers, name: value})


def _values(questionnaire: Questionnaire, name: str, answers: Mapping[str, Any]) -> list[Any]:
    """Return the possible answers of a question, the default first; empty for free text."""
    default = answers[name]
    if not questionnaire.applies(name, answers):
        return []
    if questionnaire.questions[name].type == "bool":
        return [default, not default]
    return sorted(questionnaire.choices(name, answers), key=lambda value: bool(value != default))


def _word(name: str, value: Any) -> str:
    """Return the part of a variant's name for an answer: `uuid`, `asyncio`, `no-asyncio`."""
    if isinstance(value, bool):
        return _slug(name) if value else f"no-{_slug(name)}"
    return _slug(value)


def _slug(value: Any) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", str(value).lower())


def interpreter(project: Path, shared: Path) -> str:
    """Return an interpreter that has the requirements of a project: the running one, or that of `shared`.

    One shared environment serves all other projects, because their requirements are compatible.
    """
    wanted = environment.requirements(project)
    if environment.is_satisfied(wanted):
        return sys.executable
    python = environment.create(shared)
    environment.install(python, *wanted)
    return str(python)


def _python_needed(project: Path) -> tuple[int, ...]:
    text = (project / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^requires-python = ">=(\d+)\.(\d+)"', text, re.MULTILINE)
    return tuple(map(int, found.groups())) if found else (3, 11)
