"""Hook after a render: create a repository with one commit of everything, which `copier update` needs.

It never fails a render: without git, or inside another repository, it changes nothing and returns the reason.
By hand, after a plain `copier copy`:

    python hooks/git.py shop
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

# Identity of the commit if git has none for the user. It is written to no configuration.
NAME, EMAIL = "scaffold", "scaffold@localhost"
MESSAGE = "Start from the scaffold"

# The user's settings that keep files out of the commit, or change it, each with a value that does not. The
# project has its own .gitignore and .gitattributes, and a hook may require a ticket number or the network.
# Signing is left to the user: without a signature there is no commit.
NEUTRAL = {
    "core.excludesFile": os.devnull,
    "core.attributesFile": os.devnull,
    "core.autocrlf": "false",
    "core.hooksPath": os.devnull,
    "commit.cleanup": "verbatim",
}


def run(project: Path) -> str:
    """Make `project` a git repository on branch main, commit everything, and return a note."""
    try:
        inside = _git(project, "rev-parse", "--show-toplevel")
        if inside.returncode == 0:
            return f"git: no repository of its own, {project.name} is inside {inside.stdout.strip()}"
        for step in (["init", "--quiet", "--initial-branch=main", "--template="], ["add", "--all"]):
            done = _git(project, *step)
            if done.returncode:
                return f"git: no first commit ({_reason(done)})"
        note = _commit(project)
        # Copies the hooks and excluded names of the user's `init.templateDir`, for the commits to come.
        _git(project, "init", "--quiet")
        return note
    except FileNotFoundError:
        return "git: no first commit, git is not on PATH"


def _commit(project: Path) -> str:
    commit = ["commit", "--quiet", f"--message={MESSAGE}"]
    # Without `useConfigOnly`, git derives an address from the host name.
    names = ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT")
    known = not any(_git(project, "-c", "user.useConfigOnly=true", "var", name).returncode for name in names)
    identity = [] if known else ["-c", f"user.name={NAME}", "-c", f"user.email={EMAIL}"]
    done = _git(project, *identity, *commit)
    if done.returncode:
        return f"git: everything is staged, but not committed ({_reason(done)})"
    if known:
        return "git: first commit on main"
    return (
        f"git: first commit on main as {NAME} <{EMAIL}>, because git has no user.name and user.email; "
        "set them and run `git commit --amend --reset-author`"
    )


def _git(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # A git hook of another repository sets these variables; the commit would go there.
    elsewhere = {"GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
    neutral = [part for name, value in NEUTRAL.items() for part in ("-c", f"{name}={value}")]
    return subprocess.run(
        ["git", *neutral, *arguments],
        cwd=project,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"git exited with {done.returncode}"


def main() -> int:
    """Commit the project named on the command line."""
    parser = argparse.ArgumentParser(description="Give a fresh project a git repository with a first commit.")
    parser.add_argument("project", type=Path, help="folder of the project")
    project = parser.parse_args().project
    if not project.is_dir():
        print(f"{project} is not a folder", file=sys.stderr)
        return 2
    print(run(project))
    return 0


if __name__ == "__main__":
    sys.exit(main())
