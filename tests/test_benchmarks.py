"""Rows of the benchmarks run on the projects of this work tree; their goals are for an idle machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

# A cheap row for each way to set up a project: a node that is alone, clusters that commands work on, tenants,
# and foreign tables.
ROWS = (
    "statements for 10 000 ORM objects",
    "verify of a sound cluster",
    "a session for a tenant that is known",
    "that join against foreign tables",
)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_benchmarks_runs(name: str, tmp_path: Path) -> None:
    options = ["--quick", "--debug", "--only", name, "--before", str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options, "--report", str(tmp_path / "report.json")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "generator")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "SKIP" not in done.stdout
