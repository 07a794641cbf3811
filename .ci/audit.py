"""Run bandit on folders; its findings are errors, except where there is a reason.

Ruff has the same rules under the same numbers, as S instead of B. So `# noqa: S311` on a line of a finding is
its exception, and so are the rules that the settings of Ruff ignore. `REASONS` has those that Ruff finds not.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

REASONS = {
    ("B105", "cli.py"): "PASS is an outcome",
    ("B310", "native.py"): "the scheme of the address is fixed",
    ("B311", "backend.py"): "the choice of a node spreads the load, and is no secret",
    ("B405", "report.py"): "the module writes XML and reads none",
    ("B608", "expand_contract.py"): "the statements are written into files that the user reads",
}
"""Reason for all findings of a rule in the files of a name."""


def ignored() -> str:
    """Return the rules that pyproject.toml ignores, with their reasons, as bandit names them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rules: list[str] = settings["tool"]["ruff"]["lint"]["ignore"]
    return ",".join(rule.replace("S", "B") for rule in rules if re.fullmatch(r"S\d+", rule))


def is_excepted(finding: dict[str, Any]) -> bool:
    """Return True if `REASONS` has the rule and the file, or a line of the finding has it in a `noqa`."""
    file = Path(finding["filename"])
    if (finding["test_id"], file.name) in REASONS:
        return True
    lines = file.read_text().splitlines()
    rule = finding["test_id"].replace("B", "S")
    # Codes only: a reason behind them may mention another rule.
    named = re.compile(rf"# noqa: (?:[A-Z]+\d+, ?)*{rule}\b")
    return any(named.search(lines[number - 1]) for number in finding["line_range"])


def main(folders: list[str]) -> int:
    """Print the findings that have no reason; return 1 if there are any."""
    options = ["--quiet", "--format", "json", "--skip", ignored(), "--recursive"]
    command = [sys.executable, "-m", "bandit", *options, *folders]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if not found.stdout:
        print(found.stderr, file=sys.stderr)
        return 2
    report = json.loads(found.stdout)
    if report["errors"]:
        print(report["errors"], file=sys.stderr)
        return 2
    left = [finding for finding in report["results"] if not is_excepted(finding)]
    for finding in left:
        print(f"{finding['filename']}:{finding['line_number']}: {finding['test_id']} {finding['issue_text']}")
    print(f"{len(report['results'])} findings, {len(left)} without a reason")
    return min(len(left), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
