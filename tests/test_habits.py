"""Habits of development: pinned actions, a changelog with the version, commit subjects with an area."""

import re
from typing import Any

import pytest
import yaml

from conftest import ROOT
from scaffold import __version__

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


WRITERS = {
    "images.yml": {("pin", "contents"), ("pin", "pull-requests")},
    "release.yml": {("publish", "attestations"), ("publish", "id-token")},
}
"""Jobs with their rights to write, by workflow."""


def hook(name: str) -> dict[str, Any]:
    """Return a hook of the pre-commit configuration."""
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    found: dict[str, Any] = next(one for one in local["hooks"] if one["id"] == name)
    return found


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_an_action_is_pinned_by_its_commit_and_names_its_version(workflow: Any) -> None:
    uses = [line for line in workflow.read_text().splitlines() if re.search(r"\buses:", line)]
    # A workflow of the same commit needs no pin.
    pinned = re.compile(r" uses: ([\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$|\./\.github/workflows/\w+\.yml\b)")
    assert uses
    assert [line for line in uses if not pinned.search(line)] == []


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_job_may_only_read_the_repository_unless_it_publishes(workflow: Any) -> None:
    content = yaml.safe_load(workflow.read_text())
    may_write = {
        (name, right)
        for name, job in content["jobs"].items()
        for right, access in (content["permissions"] | job.get("permissions", {})).items()
        if access != "read"
    }
    assert may_write == WRITERS.get(workflow.name, set())


def test_the_changelog_has_the_version_of_the_package_below_what_is_unreleased() -> None:
    titles = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert titles[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d", titles[1])


@pytest.mark.parametrize(
    ("message", "is_accepted"),
    [
        ("tests: hold the figures of the house", True),
        ("multidb, tenants: rename keys\n\nThe reason.\n", True),
        ("tests: " + "x" * 65, True),
        ("tests: " + "x" * 66, False),
        ("Tests: hold the figures", False),
        ("hold the figures", False),
        ("tests: Hold the figures", False),
    ],
)
def test_the_subject_of_a_commit_has_an_area_and_a_limit(message: str, is_accepted: bool) -> None:
    """The hook runs the pattern as pre-commit's pygrep does with --multiline."""
    pattern = hook("subject")["entry"]
    assert bool(re.search(pattern, message, re.MULTILINE | re.DOTALL)) is is_accepted
