"""The table on isolation in each README is the one whose lines `verify --isolation` shows."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import QUESTIONNAIRE, VARIANTS

PRINT = """
from shop.ops.verify.checks.anomalies import TABLE
for line in TABLE:
    print(f"| {' | '.join(line.cells)} |")
"""


@pytest.mark.parametrize("backend", QUESTIONNAIRE.choices("backend", {}))
def test_the_readme_has_the_lines_that_verify_shows(backend: str, rendered: Callable[[str], Path]) -> None:
    wanted = QUESTIONNAIRE.resolve({"project_name": "shop", "backend": backend})
    name = next(name for name, one in VARIANTS.items() if QUESTIONNAIRE.resolve(one.answers) == wanted)
    project = rendered(name)
    shown = subprocess.run(
        [sys.executable, "-c", PRINT],
        env={**os.environ, "PYTHONPATH": str(project / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    section = (project / "README.md").read_text().partition("\n## Isolation\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    assert table[:2] == ["| anomaly | where | here | because, or the way out |", "|---|---|---|---|"]
    assert table[2:] == shown
