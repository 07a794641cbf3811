"""After a render: a repository with everything in its first commit, which `copier update` builds upon.

Never fails a render: where there is no git, or the project lies in a repository already, it says so and
leaves things as they are. By hand, after a plain `copier copy`:

    python hooks/git.py shop
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

# For one commit, where git does not know its user. Nothing is written to anybody's configuration.
NAME, EMAIL = "scaffold", "scaffold@localhost"
MESSAGE = "Start from the scaffold"


def run(project: Path) -> str:
    """Make `project` a git repository on branch main, commit everything, and say what was done."""
    try:
        inside = _git(project, "rev-parse", "--show-toplevel")
        if inside.returncode == 0:
            return (
                f"git: {project.name} lies in the repository {inside.stdout.strip()} and got none of its own"
            )
        for step in (["init", "--quiet", "--initial-branch=main"], ["add", "--all"]):
            done = _git(project, *step)
            if done.returncode:
                return f"git: no first commit ({_reason(done)})"
        return _commit(project)
    except FileNotFoundError:
        return "git: no first commit, git is not on PATH"


def _commit(project: Path) -> str:
    commit = ["commit", "--quiet", f"--message={MESSAGE}"]
    # Without this, git makes up an address from the machine's name and signs with it.
    known = _git(project, "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT").returncode == 0
    identity = [] if known else ["-c", f"user.name={NAME}", "-c", f"user.email={EMAIL}"]
    done = _git(project, *identity, *commit)
    if done.returncode:
        return f"git: everything is staged, but not committed ({_reason(done)})"
    if known:
        return "git: first commit on main"
    return (
        f"git: first commit on main, as {NAME} <{EMAIL}>, for git does not know your name; "
        "`git commit --amend --reset-author` makes it yours"
    )


def _git(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Inside another repository's hook these point there, and the commit would land there.
    elsewhere = {"GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"}
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
    return subprocess.run(
        # The user's own hooks are for the user's commits: one may ask for a ticket, or reach for the network.
        ["git", "-c", f"core.hooksPath={os.devnull}", *arguments],
        cwd=project,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"git ended with {done.returncode}"


def main() -> int:
    """Commit the project named on the command line."""
    parser = argparse.ArgumentParser(description="Give a fresh project a git repository with a first commit.")
    parser.add_argument("project", type=Path, help="the folder that holds the project")
    project = parser.parse_args().project
    if not project.is_dir():
        print(f"{project} is not a folder", file=sys.stderr)
        return 2
    print(run(project))
    return 0


if __name__ == "__main__":
    sys.exit(main())
