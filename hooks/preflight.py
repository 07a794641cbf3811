"""Hook before a render: check that the project can be created, before anything is written.

It needs nothing but the standard library. By hand, before a plain `copier copy`:

    python hooks/preflight.py shop
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

PYTHON = (3, 11)


class Refused(Exception):
    """The project cannot be created here; the message states the reason and the remedy."""


def run(project: Path, *, git: bool = True) -> str:
    """Check that `project` is free and writable and that its tools are installed; return a note.

    Args:
        project: folder to create.
        git: require git, for the first commit.

    Raises:
        Refused: the project cannot be created here.
    """
    if sys.version_info < PYTHON:
        raise Refused(f"This is Python {sys.version.split()[0]}; the project needs 3.11 or newer.")
    _refuse_taken(project)
    _refuse_unwritable(project)
    if git and not shutil.which("git"):
        raise Refused("git is not on PATH, so there can be no first commit. Install git, or add --no-git.")
    return f"{project} is free"


def _refuse_taken(project: Path) -> None:
    try:
        if project.is_dir():
            found = next(project.iterdir(), None)
            if found is not None:
                raise Refused(
                    f"{project} is not empty: it holds {found.name}. Name another folder, or empty this one."
                )
        elif project.exists() or project.is_symlink():
            raise Refused(f"{project} exists and is not a folder. Name another folder.")
    except OSError as error:
        raise Refused(f"{project} cannot be read: {error.strerror}. Name another folder.") from error


def _refuse_unwritable(project: Path) -> None:
    ground = next(folder for folder in (project, *project.absolute().parents) if folder.exists())
    # Create a folder to find out: root ignores permission bits, and a read-only file system ignores root.
    try:
        trial = tempfile.mkdtemp(prefix=".scaffold-", dir=ground)
    except OSError as error:
        raise Refused(f"{ground} is not writable: {error.strerror}. Name another folder.") from error
    with contextlib.suppress(OSError):
        Path(trial).rmdir()


def main() -> int:
    """Check the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Check that a project can be created in a folder.")
    parser.add_argument("project", type=Path, help="folder of the project")
    parser.add_argument("--no-git", action="store_true", help="do not require git")
    options = parser.parse_args()
    try:
        print(run(options.project, git=not options.no_git))
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
