"""Run git on repositories, undisturbed by the variables that a git hook sets."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

# A git hook of another repository sets these variables, and they override the working directory.
ELSEWHERE = {
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_WORK_TREE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_COMMON_DIR",
    "GIT_PREFIX",
}


class GitFailed(Exception):
    """A git command failed; the message is the cause that git printed.

    Attributes:
        code: exit code of git.
    """

    def __init__(self, output: str, code: int) -> None:
        """Find the cause in the output: the first fatal line, before any advice."""
        lines = output.strip().splitlines() or [f"git exited with {code}"]
        cause = next((line for line in lines if line.startswith(("fatal: ", "error: "))), lines[-1])
        super().__init__(masked(cause.removeprefix("fatal: ").removeprefix("error: ")))
        self.code = code


def masked(text: str) -> str:
    """Return a text without the passwords of the URLs in it."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def git(
    folder: Path, *arguments: str | Path, env: Mapping[str, str] | None = None, given: str | None = None
) -> str:
    """Run git in `folder` and return its output, without the last line break.

    Args:
        folder: working directory.
        arguments: command and options of git.
        env: environment variables beside those of this process.
        given: text for the standard input, which is empty otherwise.

    Raises:
        GitFailed: git exited with another code than 0.
        OSError: git is not installed, or `folder` cannot be entered.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={**environment, "LC_ALL": "C", **(env or {})},
        input=given or "",
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
    )
    if done.returncode:
        raise GitFailed(done.stderr.strip() or done.stdout, done.returncode)
    return done.stdout.removesuffix("\n")
