"""Run bandit on folders; its findings are errors, except where the line itself states a reason.

Ruff has the same rules under the same numbers, as S instead of B. So `# noqa: S311` on a line of a finding is
its exception, and so are the rules that the settings of Ruff ignore. Rules that Ruff lacks take `# nosec`.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def ignored() -> str:
    """Return the rules that pyproject.toml ignores, with their reasons, as bandit names them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rules: list[str] = settings["tool"]["ruff"]["lint"]["ignore"]
    return ",".join(rule.replace("S", "B") for rule in rules if re.fullmatch(r"S\d+", rule))


def is_excepted(finding: dict[str, Any]) -> bool:
    """Return True if a line of the finding names its rule in a `noqa`."""
    lines = Path(finding["filename"]).read_text().splitlines()
    rule = finding["test_id"].replace("B", "S")
    return any(re.search(rf"# noqa: .*\b{rule}\b", lines[number - 1]) for number in finding["line_range"])


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
