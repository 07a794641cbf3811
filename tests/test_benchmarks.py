"""Rows of the benchmarks run on the projects of this work tree; their goals are for an idle machine."""

import os
import re
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
    done = run("benchmarks", *options, "--report", str(tmp_path / "report.json"))
    assert "SKIP" not in done


def test_a_schema_change_is_measured_where_it_can_be_made() -> None:
    """A mesh refuses a unique constraint, and holds writers up while a column is dropped."""
    numbers = ("--change", "10", "--change", "25")
    said = run("benchmarks.schema_changes", "--rows", "2000", "--backend", "pgedge", *numbers)
    [dropped] = re.findall(r"^\| 10 \| drop a column \| (\d+) \|$", said, re.MULTILINE)
    assert int(dropped) > 0
    assert "| 25 | add a unique constraint | refused |" in said


def run(module: str, *options: str) -> str:
    """Run a module of the benchmarks, which must succeed, and return its output."""
    done = subprocess.run(
        [sys.executable, "-m", module, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "generator")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
