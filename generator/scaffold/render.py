"""From answers to a project: the only module that calls Copier.

Guarantees: a render writes all of the project or nothing, and is the same on every machine.
"""

import contextlib
import errno
import importlib.util
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaffold import source
from scaffold.errors import BadInput, ScaffoldError, TemplateFault

# Hooks after the render, in this order: what is committed includes the lock.
AFTER = ("lock", "git")
STAGING = ".scaffold-"


@dataclass(frozen=True)
class Project:
    """What a render made."""

    path: Path
    answers: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)


def make(root: Path, target: Path, given: Mapping[str, Any], *, git: bool, lock: bool, ask: bool) -> Project:
    """Render the template at `root` with the answers given, run the hooks, and put the result at `target`."""
    preflight = load_hook(root, "preflight")
    try:
        preflight.run(target, git=git)
    except preflight.Refused as refused:
        raise BadInput(str(refused)) from refused
    wanted = {"git": git, "lock": lock}
    with staged(target) as project:
        answers = render(root, project, given, ask=ask)
        notes = [load_hook(root, name).run(project) for name in AFTER if wanted[name]]
    return Project(target, answers, notes)


def render(root: Path, folder: Path, given: Mapping[str, Any], *, ask: bool = False) -> dict[str, Any]:
    """Render the template at `root` into `folder`, asking for what is not given or taking defaults.

    Returns all answers. Only `given` and the origin reach Copier, so that `copier copy` with the same answers
    makes the same bytes.
    """
    # Copier takes a quarter of a second to import, which no other command should pay.
    import copier  # noqa: PLC0415
    import copier.errors  # noqa: PLC0415
    import jinja2  # noqa: PLC0415
    import plumbum  # noqa: PLC0415

    try:
        # Copier is shown a plain folder: with git in sight it clones the template and then asks git once for
        # each file that it writes, which doubles the time, and of a changed checkout it would record a commit
        # that exists in that clone alone. `source.origin` tells what can be known. Hidden from Copier only,
        # and not by an empty PATH, which is the current folder.
        with plumbum.local.env(PATH=os.devnull):
            worker = copier.run_copy(
                str(root),
                folder,
                data={**given, "_template_origin": source.origin(root)},
                defaults=not ask,
                quiet=True,
                # Not the user's own: its `defaults` would answer questions behind the command line's back,
                # and the same command would make different projects on two machines.
                settings=copier.Settings(),
            )
    except KeyboardInterrupt:
        # Copier's own class for it is a CopierError as well, which must not be taken for one below.
        raise
    except jinja2.TemplateError as error:
        where = (
            f"{error.name}, line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
        )
        raise TemplateFault(
            f"The template cannot be rendered: {where}{error}\n"
            "This is a fault of the template, not of your answers; --debug shows where it lies."
        ) from error
    except copier.errors.CopierError as error:
        raise TemplateFault(f"Copier refuses the template: {error}") from error
    except ValueError as error:
        # An answer that was asked for, not given, and that the questions could not check beforehand.
        raise BadInput(str(error)) from error
    return dict(worker.answers.user)


def load_hook(root: Path, name: str) -> Any:
    """Import hooks/`name`.py, which is a script beside the template rather than a module of this package."""
    spec = importlib.util.spec_from_file_location(f"scaffold_hook_{name}", root / "hooks" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ScaffoldError(f"This installation of scaffold has lost its hook {name}. Install it again.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield a folder to make the project in: it becomes `target` if the block ends well, else it vanishes."""
    target = Path(os.path.abspath(target))  # noqa: PTH100 - resolving would replace a link by what it points at
    ground = next(folder for folder in (target, *target.parents) if folder.is_dir())
    staging = ground / f"{STAGING}{os.urandom(4).hex()}"
    try:
        # A folder in a folder, for the inner one gets the user's own mode, as `mkdir` would give it.
        staging.mkdir(mode=0o700)
        made = staging / target.name
        yield made
        _put_in_place(made, target)
    finally:
        with _undisturbed():
            shutil.rmtree(staging, ignore_errors=True)


def _put_in_place(made: Path, target: Path) -> None:
    """Move the project to `target`, all of it or nothing."""
    with _undisturbed():
        try:
            if target.exists():
                _move_entries(made, target)
            else:
                _move_whole(made, target)
        except OSError as error:
            raise BadInput(
                f"The project cannot be put at {target}: {error.strerror}. Name another folder."
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
    """Fill a folder that exists: it may be a mount point, or somebody's current one, so it stays."""
    moved: list[Path] = []
    try:
        for entry in target.iterdir():
            if entry != made.parent:
                raise FileExistsError(errno.EEXIST, f"{entry.name} has appeared there meanwhile")
        for entry in made.iterdir():
            moved.append(entry.rename(target / entry.name))
    except OSError:
        for entry in moved:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        raise


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold Ctrl-C and its kin back until a short piece of work is whole."""
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def temporary_render(root: Path, given: Mapping[str, Any]) -> list[Path]:
    """Return the files that a render with these answers would write, relative to the project."""
    with tempfile.TemporaryDirectory(prefix="scaffold-") as folder:
        project = Path(folder) / "project"
        render(root, project, given)
        return sorted(path.relative_to(project) for path in project.rglob("*") if path.is_file())
