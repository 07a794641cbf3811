"""Render a project from answers; no other module calls Copier.

Guarantees: a render writes the whole project or nothing, and the same answers give the same bytes on every
machine.
"""

import contextlib
import errno
import importlib.util
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaffold import source
from scaffold.errors import BadInput, Cancelled, ScaffoldError, TemplateFault

# Hooks after the render, in this order, so that the first commit includes the lock.
AFTER = ("lock", "git")
STAGING = ".scaffold-"


@dataclass(frozen=True)
class Project:
    """A rendered project, with one note per hook."""

    path: Path
    answers: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """The user at a terminal, who is asked for the answers that are not given.

    Attributes:
        defaults: answers that are offered instead of those of copier.yml.
        agrees: shows the plan, given all answers and the number of files, and returns the user's decision.
    """

    defaults: Mapping[str, Any]
    agrees: Callable[[Mapping[str, Any], int], bool]


def make(
    root: Path,
    target: Path,
    given: Mapping[str, Any],
    *,
    git: bool,
    lock: bool,
    terminal: Terminal | None = None,
) -> Project:
    """Render the template at `root` with the given answers, run the hooks, move the result to `target`.

    Raises:
        BadInput: an answer is invalid, or `target` cannot be created.
        Cancelled: the user at the terminal said no.
    """
    preflight = load_hook(root, "preflight")
    try:
        preflight.run(target, git=git)
    except preflight.Refused as refused:
        raise BadInput(str(refused)) from refused
    wanted = {"git": git, "lock": lock}
    with staged(target) as project:
        answers = render(
            root, project, given, ask=terminal is not None, defaults=terminal.defaults if terminal else None
        )
        if terminal and not terminal.agrees(answers, sum(path.is_file() for path in project.rglob("*"))):
            raise Cancelled("Cancelled; nothing was written.")
        notes = [load_hook(root, name).run(project) for name in AFTER if wanted[name]]
    return Project(target, answers, notes)


def render(
    root: Path,
    folder: Path,
    given: Mapping[str, Any],
    *,
    ask: bool = False,
    defaults: Mapping[str, Any] | None = None,
    origin: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Render the template at `root` into `folder`; return all answers.

    Copier receives `given` and the origin alone, so that `copier copy` with the same answers writes the same
    bytes. With `ask`, it asks for the other answers on the terminal, and offers `defaults`; else these take
    the defaults of copier.yml. The recorded origin is that of `root` unless `origin` is given.
    """
    # Copier takes 0.25 s to import; only the commands that render need it.
    import copier  # noqa: PLC0415
    import copier.errors  # noqa: PLC0415
    import jinja2  # noqa: PLC0415
    import plumbum  # noqa: PLC0415

    try:
        # Hide git from Copier, so that it takes the template for a plain folder. With git it clones the
        # template and calls git for each file that it writes, which doubles the time, and for a changed
        # checkout it records a commit that exists in that clone alone. `source.origin` provides the origin
        # instead. PATH is not empty, because an empty PATH means the current folder.
        with plumbum.local.env(PATH=os.devnull):
            worker = copier.run_copy(
                str(root),
                folder,
                data={
                    **given,
                    "_template_origin": source.origin(root) if origin is None else dict(origin),
                },
                defaults=not ask,
                user_defaults=dict(defaults or {}),
                quiet=True,
                # Not the user's settings: their `defaults` would answer questions, and the same command would
                # give different projects on two machines.
                settings=copier.Settings(),
            )
    except KeyboardInterrupt:
        # Copier's subclass of KeyboardInterrupt is a CopierError too, which is handled below.
        raise
    except jinja2.TemplateError as error:
        where = (
            f"{error.name}, line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
        )
        raise TemplateFault(
            f"The template cannot be rendered: {where}{error}\n"
            "This is a fault of the template, not of your answers; --debug prints the traceback."
        ) from error
    except copier.errors.CopierError as error:
        raise TemplateFault(f"Copier refuses the template: {error}") from error
    except ValueError as error:
        # An answer typed at Copier's prompt, which could not be checked beforehand.
        raise BadInput(str(error)) from error
    return dict(worker.answers.user)


def load_hook(root: Path, name: str) -> Any:
    """Import hooks/`name`.py of the template at `root`, a script outside this package."""
    spec = importlib.util.spec_from_file_location(f"scaffold_hook_{name}", root / "hooks" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ScaffoldError(f"The hook {name} of this installation is missing. Reinstall scaffold.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield a path to render to; move the result to `target`, or delete it if the block raises."""
    target = Path(os.path.abspath(target))  # noqa: PTH100 - `resolve` would follow links
    ground = next(folder for folder in (target, *target.parents) if folder.is_dir())
    staging = ground / f"{STAGING}{os.urandom(4).hex()}"
    try:
        # Two levels: the outer folder is private, the inner one gets the mode of the user's umask.
        staging.mkdir(mode=0o700)
        made = staging / target.name
        yield made
        _put_in_place(made, target)
    finally:
        with undisturbed():
            shutil.rmtree(staging, ignore_errors=True)


def _put_in_place(made: Path, target: Path) -> None:
    """Move the project to `target`, the whole of it or nothing."""
    with undisturbed():
        try:
            if target.exists():
                _move_entries(made, target)
            else:
                _move_whole(made, target)
        except OSError as error:
            raise BadInput(
                f"Cannot move the project to {target}: {error.strerror}. Name another folder."
            ) from error


def _move_whole(made: Path, target: Path) -> None:
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made.rename(target)
    except OSError:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _move_entries(made: Path, target: Path) -> None:
    """Fill a folder that exists, without replacing it: it may be a mount point or a current directory."""
    moved: list[Path] = []
    try:
        for entry in target.iterdir():
            if entry != made.parent:
                raise FileExistsError(errno.EEXIST, f"{entry.name} has appeared there since the check")
        for entry in made.iterdir():
            moved.append(entry.rename(target / entry.name))
    except OSError:
        for entry in moved:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        raise


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Block SIGINT, SIGTERM and SIGHUP inside the block; they arrive after it."""
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def temporary_render(root: Path, given: Mapping[str, Any]) -> list[Path]:
    """Render to a temporary folder; return the paths of the files, relative to the project."""
    with tempfile.TemporaryDirectory(prefix="scaffold-") as folder:
        project = Path(folder) / "project"
        render(root, project, given)
        return sorted(path.relative_to(project) for path in project.rglob("*") if path.is_file())
