"""After a render, on request: uv.lock, the exact version of everything that the project depends on.

Never fails a render: with no uv, or no network, it says what to do later. By hand, after a plain
`copier copy`:

    python hooks/lock.py shop
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

LATER = "`uv lock` in the project makes it"
# Arbitrary: resolving takes seconds; a name server that does not answer takes for ever.
TIMEOUT = 120.0


def run(project: Path) -> str:
    """Write `project`/uv.lock if it can be, and say what was done."""
    if not shutil.which("uv"):
        return f"lock: no uv.lock, for uv is not on PATH; once it is, {LATER}"
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
        return f"lock: no uv.lock, uv gave no answer in {TIMEOUT:g} s; {LATER}"
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        return f"lock: no uv.lock ({lines[0].strip() if lines else 'uv failed'}); with a network, {LATER}"
    return "lock: uv.lock holds exact versions"


def main() -> int:
    """Lock the project named on the command line."""
    parser = argparse.ArgumentParser(description="Lock the dependencies of a project with uv.")
    parser.add_argument("project", type=Path, help="the folder that holds the project")
    project = parser.parse_args().project
    if not project.is_dir():
        print(f"{project} is not a folder", file=sys.stderr)
        return 2
    print(run(project))
    return 0


if __name__ == "__main__":
    sys.exit(main())
