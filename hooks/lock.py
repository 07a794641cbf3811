"""Hook after a render, where uv is installed: write uv.lock, with the hash of every file of the dependencies.

It never fails a render: without uv or network, it returns the command to run later. By hand, after a plain
`copier copy`:

    python hooks/lock.py shop
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

LATER = "run `uv lock` in the project"
# Seconds; arbitrary. Resolving takes seconds, waiting for a dead name server has no end.
TIMEOUT = 60.0


def run(project: Path) -> str:
    """Write `project`/uv.lock if possible, and return a note."""
    if not shutil.which("uv"):
        return f"lock: no uv.lock, uv is not on PATH; once it is, {LATER}"
    try:
        subprocess.run(
            ["uv", "lock", "--quiet"],
            cwd=project,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return f"lock: no uv.lock, uv timed out after {TIMEOUT:g} s; {LATER}"
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        return f"lock: no uv.lock ({lines[0].strip() if lines else 'uv failed'}); with a network, {LATER}"
    return "lock: uv.lock written"


def main() -> int:
    """Lock the project named on the command line."""
    parser = argparse.ArgumentParser(description="Lock the dependencies of a project with uv.")
    parser.add_argument("project", type=Path, help="folder of the project")
    project = parser.parse_args().project
    if not project.is_dir():
        print(f"{project} is not a folder", file=sys.stderr)
        return 2
    print(run(project))
    return 0


if __name__ == "__main__":
    sys.exit(main())
