"""`copier update` brings a project from tag to tag and keeps the edits made to it."""

from pathlib import Path

import copier
import pytest
import yaml

from conftest import QUESTIONNAIRE, Scaffold, commit, git

NOTES = "template/project/NOTES.md.jinja"
# A backend, and two key strategies that it has.
BACKEND, KEYS, OTHER_KEYS = next(
    (name, *list(profile["key_strategies"])[:2])
    for name, profile in QUESTIONNAIRE.profiles().items()
    if len(profile["key_strategies"]) > 1
)


@pytest.fixture
def template(checkout: Path) -> Path:
    """Return the template at v0.1.0, with a file of known lines."""
    lines = "".join(f"Line {number} of {{{{ project_name }}}}.\n" for number in range(9))
    (checkout / NOTES).write_text(lines)
    commit(checkout, "notes", tag="v0.1.0")
    return checkout


@pytest.fixture
def project(template: Path, scaffold: Scaffold) -> Path:
    """Create a project at v0.1.0, edit it, and bring the template to v0.2.0."""
    options = ("--backend", BACKEND, "--keys", KEYS, "-d", "description=About")
    made = scaffold("new", "shop", *options, root=template)
    assert made.returncode == 0, made.stderr
    project = scaffold.place / "shop"
    replace(project / "NOTES.md", "Line 8 of shop.", "Our line 8.")
    (project / "ours.txt").write_text("ours\n")
    commit(project, "our work")
    replace(template / NOTES, "Line 0 of", "Their line 0 for")
    (template / "template/project/theirs.txt").write_text("theirs\n")
    commit(template, "a better template", tag="v0.2.0")
    return project


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def update(project: Path, **options: object) -> None:
    copier.run_update(
        project,
        defaults=True,
        overwrite=True,
        quiet=True,
        settings=copier.Settings(),
        **options,  # type: ignore[arg-type]
    )


def answers(project: Path) -> dict[str, str]:
    content: dict[str, str] = yaml.safe_load((project / ".copier-answers.yml").read_text())
    return content


def test_an_update_brings_what_is_new_and_keeps_what_was_edited(project: Path) -> None:
    assert answers(project)["_commit"] == "v0.1.0"
    update(project)
    lines = (project / "NOTES.md").read_text().splitlines()
    assert (lines[0], lines[8]) == ("Their line 0 for shop.", "Our line 8.")
    assert (project / "theirs.txt").read_text() == "theirs\n"
    assert (project / "ours.txt").read_text() == "ours\n"
    assert git(project, "diff", "--name-only", "--diff-filter=U") == ""


def test_an_update_keeps_the_answers(project: Path) -> None:
    before = answers(project)
    update(project)
    assert answers(project) == {**before, "_commit": "v0.2.0"}


def test_an_answer_can_be_changed_without_a_new_version(project: Path) -> None:
    keys = project / "src/shop/db/keys.py"
    before = keys.read_text()
    update(project, data={"keys": OTHER_KEYS}, vcs_ref=copier.VcsRef.CURRENT)
    assert answers(project)["keys"] == OTHER_KEYS
    assert answers(project)["_commit"] == "v0.1.0"
    assert keys.read_text() != before
    assert (project / "NOTES.md").read_text().endswith("Our line 8.\n")


def test_lines_that_both_sides_changed_are_marked_as_a_conflict(project: Path, template: Path) -> None:
    replace(template / NOTES, "Line 8 of", "Their line 8 for")
    commit(template, "the same line", tag="v0.3.0")
    update(project)
    assert git(project, "diff", "--name-only", "--diff-filter=U") == "NOTES.md"


def test_a_project_from_a_changed_checkout_can_be_updated(template: Path, scaffold: Scaffold) -> None:
    (template / "template/project/draft.txt").write_text("not committed\n")
    assert scaffold("new", "shop", root=template).returncode == 0
    commit(template, "now it is", tag="v0.2.0")
    update(scaffold.place / "shop")
    assert answers(scaffold.place / "shop")["_commit"] == "v0.2.0"
    assert (scaffold.place / "shop/draft.txt").read_text() == "not committed\n"
