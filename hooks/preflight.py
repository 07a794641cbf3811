"""Before a render: can the project be made here at all?

Answers before anything is written, and needs nothing but the standard library. By hand, before a plain
`copier copy`:

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
    """The project cannot be made here; the message says why and what would help."""


def run(project: Path, *, git: bool = True) -> str:
    """Raise Refused unless `project` is free and writable and the tools for it are there.

    `git` says whether a first commit is wanted.
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
        raise Refused(f"{project} cannot be looked into: {error.strerror}. Name another folder.") from error


def _refuse_unwritable(project: Path) -> None:
    ground = next(folder for folder in (project, *project.absolute().parents) if folder.exists())
    # Permission bits do not tell: root ignores them, and a read-only file system ignores root. So try.
    try:
        trial = tempfile.mkdtemp(prefix=".scaffold-", dir=ground)
    except OSError as error:
        raise Refused(
            f"Nothing can be written in {ground}: {error.strerror}. Name another folder."
        ) from error
    with contextlib.suppress(OSError):
        Path(trial).rmdir()


def main() -> int:
    """Check the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Can a project be made here?")
    parser.add_argument("project", type=Path, help="the folder that is to hold the project")
    parser.add_argument("--no-git", action="store_true", help="no first commit is wanted")
    options = parser.parse_args()
    try:
        print(run(options.project, git=not options.no_git))
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
