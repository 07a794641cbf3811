"""The command `diff` in a process of its own, which `diff.py` starts: a peak of memory cannot be reset.

    python -m benchmarks.diff_process PACKAGE TABLE

prints the exit status and the peak of resident memory in bytes, after the output of the command.
"""

import importlib
import sys
from pathlib import Path


def main(package: str, table: str) -> tuple[int, int]:
    """Run the command; return its exit status and the largest resident memory in bytes."""
    # Not getrusage: on Linux a program inherits the peak of the one that started it.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    app = importlib.import_module(f"{package}.ops.cli").app
    try:
        app(["diff", table])
    except SystemExit as ended:
        status = int(ended.code or 0)
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")
    )
    return status, int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(*main(*sys.argv[1:]))
