"""The workflows take pinned code, least permissions and no text of a stranger as a program."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import BACKEND, QUESTIONNAIRE, ROOT, VARIANTS

WORKFLOWS = {path.name: path for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}
WRITES = {
    "images.yml:pin": {"contents", "pull-requests"},
    "release.yml:publish": {"attestations", "id-token"},
}
"""Jobs that may write, and to what."""


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every job of every workflow by `file:job`."""
    for name, path in WORKFLOWS.items():
        for job, content in yaml.safe_load(path.read_text())["jobs"].items():
            yield f"{name}:{job}", content


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every step of every job."""
    for name, job in jobs():
        for step in job.get("steps", []):
            yield name, step


def test_every_action_is_pinned_by_commit() -> None:
    used = [
        line
        for path in WORKFLOWS.values()
        for line in path.read_text().splitlines()
        if re.match(r" *(- )?uses:", line) and "./.github" not in line
    ]
    assert len(used) > 10
    loose = [line for line in used if not re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line)]
    assert loose == []


def test_an_action_has_one_version() -> None:
    text = "".join(path.read_text() for path in WORKFLOWS.values())
    pins = set(re.findall(r"uses: ([\w./-]+)@([0-9a-f]{40} # v[\d.]+)", text))
    assert len(pins) == len({action for action, _ in pins})


def test_a_job_writes_only_to_what_it_is_for() -> None:
    for path in WORKFLOWS.values():
        permissions = yaml.safe_load(path.read_text())["permissions"]
        assert permissions in ({}, {"contents": "read"}), path.name
    found = {
        name: {scope for scope, right in job.get("permissions", {}).items() if right == "write"}
        for name, job in jobs()
    }
    assert {name: scopes for name, scopes in found.items() if scopes} == WRITES


def test_no_checkout_leaves_its_token_behind() -> None:
    kept = [
        name
        for name, step in steps()
        if str(step.get("uses")).startswith("actions/checkout@")
        and step.get("with", {}).get("persist-credentials") is not False
    ]
    assert kept == []


def test_no_script_is_put_together_from_expressions() -> None:
    """A value takes the environment into a script, where it is data."""
    assert [name for name, step in steps() if "${{" in step.get("run", "")] == []


def test_a_workflow_installs_tools_by_hash() -> None:
    installs = [
        (name, step["run"])
        for name, step in steps()
        if re.search(r"\b(pip|uv|npm|pipx)\b.*\binstall\b|\buvx\b|\bcurl\b|\bwget\b", step.get("run", ""))
    ]
    hashed = "pip install --require-hashes -r .ci/requirements.txt"
    # The oldest SQLAlchemy that is supported is installed on purpose.
    others = [name for name, run in installs if run != hashed and "$CONSTRAINT" not in run]
    assert installs
    assert others == []


def test_every_tool_has_a_hash() -> None:
    entries = re.split(r"\n(?=[a-z])", (ROOT / ".ci/requirements.txt").read_text())[1:]
    wanted = (ROOT / ".ci/requirements.in").read_text().split()
    locked = {entry.partition("==")[0] for entry in entries}
    assert set(wanted) <= locked
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []


def ecosystems(folder: Path) -> set[tuple[str, str]]:
    """Return what Dependabot watches."""
    found = yaml.safe_load((folder / ".github/dependabot.yml").read_text())["updates"]
    assert all(one["cooldown"]["default-days"] >= 7 for one in found)
    return {(one["package-ecosystem"], one["directory"]) for one in found}


def test_a_bot_watches_every_pin(rendered: Callable[[str], Path]) -> None:
    assert ecosystems(ROOT) == {("pip", "/"), ("pip", "/.ci"), ("github-actions", "/")}
    name = next(iter(VARIANTS))
    assert ecosystems(rendered(name)) == {("uv", "/"), ("docker-compose", "/")}


def test_a_bot_can_read_the_image(rendered: Callable[[str], Path]) -> None:
    """Dependabot replaces `name:tag@digest` inside the default of a variable, as in its own parser."""
    compose = yaml.safe_load((rendered(next(iter(VARIANTS))) / "compose.yaml").read_text())
    image = QUESTIONNAIRE.profiles()[BACKEND]["image"]
    for service in compose["services"].values():
        assert re.fullmatch(r"\$\{([^}:]+)(?::-([^}]+))?\}", service["image"])[2] == image  # type: ignore[index]


def test_a_promise_names_tests_that_exist() -> None:
    promised = set(re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text()))
    folders = [ROOT / "tests", ROOT / "template"]
    text = "".join(path.read_text() for folder in folders for path in folder.rglob("test_*.py*"))
    assert len(promised) > 10
    assert [name for name in promised if f"def {name}(" not in text] == []


# The tools, where they are installed; CI always runs them


def test_zizmor_finds_nothing(rendered: Callable[[str], Path]) -> None:
    if not shutil.which("zizmor"):
        pytest.skip("zizmor is not here")
    for folder in (ROOT, rendered(next(iter(VARIANTS)))):
        done = subprocess.run(
            ["zizmor", "--offline", "--format", "json", "."],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert json.loads(done.stdout) == []


def audit(*folders: Path) -> "subprocess.CompletedProcess[str]":
    """Run the audit of the code on folders."""
    pytest.importorskip("bandit")
    command = [sys.executable, str(ROOT / ".ci/audit.py"), *map(str, folders)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_bandit_finds_nothing_without_a_reason(rendered: Callable[[str], Path]) -> None:
    projects = [rendered(name) / "src" for name in VARIANTS]
    done = audit(ROOT / "generator", ROOT / "hooks", ROOT / "benchmarks", *projects)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("reason", ["# noqa: S105 - a word", "# nosec B105", "# noqa: E501, S105"])
def test_an_exception_needs_the_rule_on_its_line(reason: str, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(f'password = "secret"  {reason}\n')
    assert audit(tmp_path).returncode == 0
    (tmp_path / "one.py").write_text(f'{reason}\npassword = "secret"  # noqa: S106\n')
    found = audit(tmp_path)
    assert found.returncode == 1
    assert "one.py:2: B105" in found.stdout


def test_a_file_that_cannot_be_read_is_no_pass(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("def broken(\n")
    assert audit(tmp_path).returncode == 2
