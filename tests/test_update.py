"""`scaffold update` brings a project to another version or other answers, and loses no edit on the way."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml

from conftest import QUESTIONNAIRE, Scaffold, commit, files, git, names
from scaffold.update import CURRENT

PROJECT = "template/project"
NOTES = f"{PROJECT}/NOTES.md.jinja"
PACKAGE = f"{PROJECT}/src/{{{{package_name}}}}"
PICTURE = bytes(range(256)) * 8
# A backend, and two key strategies that it has.
BACKEND, KEYS, OTHER_KEYS = next(
    (name, *list(profile["key_strategies"])[:2])
    for name, profile in QUESTIONNAIRE.profiles().items()
    if len(profile["key_strategies"]) > 1
)
LOOK, REFUSED = 1, 2


@pytest.fixture(scope="module")
def seed(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a template at v0.1.0, with a file of known lines, and a project of it."""
    folder = tmp_path_factory.mktemp("seed")
    template = shutil.copytree(pristine, folder / "template")
    # Nothing here edits or runs these, and half of the time of a render goes into them.
    shutil.rmtree(template / PROJECT / "tests/runtime")
    shutil.rmtree(template / PACKAGE / "ops")
    lines = "".join(f"Line {number} of {{{{ project_name }}}}.\n" for number in range(9))
    git(template, "init", "--quiet")
    commit(template, "everything")
    (template / NOTES).write_text(lines)
    commit(template, "notes", tag="v0.1.0")
    make(template, Scaffold(folder))
    return folder


@pytest.fixture
def template(seed: Path, tmp_path: Path) -> Path:
    """Copy the template at v0.1.0, so that the test may change it."""
    return shutil.copytree(seed / "template", tmp_path / "template")


@pytest.fixture
def made(seed: Path, template: Path, scaffold: Scaffold) -> Path:
    """Copy the project at v0.1.0, as if the copy of the template had made it."""
    project = shutil.copytree(seed / "shop", scaffold.place / "shop")
    replace(project / ".copier-answers.yml", str(seed / "template"), str(template))
    git(project, "commit", "--quiet", "--all", "--amend", "--no-edit")
    return project


@pytest.fixture
def project(template: Path, made: Path) -> Path:
    """Create a project at v0.1.0 with edits, and bring the template to v0.2.0."""
    replace(made / "NOTES.md", "Line 8 of shop.", "Our line 8.")
    (made / "ours.txt").write_text("ours\n")
    commit(made, "our work")
    replace(template / NOTES, "Line 0 of", "Their line 0 for")
    (template / PROJECT / "theirs.txt").write_text("theirs\n")
    commit(template, "a better template", tag="v0.2.0")
    return made


def make(template: Path, scaffold: Scaffold, *options: str) -> Path:
    given = ("--backend", BACKEND, "--keys", KEYS, "-d", "description=About", "--no-lock")
    made = scaffold("new", "shop", *given, *options, root=template)
    assert made.returncode == 0, made.stderr
    return scaffold.place / "shop"


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def answers(project: Path) -> dict[str, str]:
    content: dict[str, str] = yaml.safe_load((project / ".copier-answers.yml").read_text())
    return content


def state(project: Path) -> tuple[dict[str, bytes], str]:
    """Return all that an update that fails must leave as it is."""
    return files(project), git(project, "status", "--porcelain", "--ignored")


def unmerged(project: Path) -> str:
    return git(project, "diff", "--name-only", "--diff-filter=U")


# Merged without a question


def test_an_update_brings_what_is_new_and_keeps_what_was_edited(scaffold: Scaffold, project: Path) -> None:
    before = answers(project)
    result = scaffold("update", "shop")
    assert result.returncode == 0, result.stderr
    lines = (project / "NOTES.md").read_text().splitlines()
    assert (lines[0], lines[8]) == ("Their line 0 for shop.", "Our line 8.")
    assert (project / "theirs.txt").read_text() == "theirs\n"
    assert (project / "ours.txt").read_text() == "ours\n"
    assert answers(project) == {**before, "_commit": "v0.2.0"}
    assert "shop: v0.1.0 -> v0.2.0, 1 commit\nfiles of the template: 1 changed, 1 added\n" in result.stdout
    assert "\n  M NOTES.md\n  A theirs.txt\n" in result.stdout


def test_an_update_is_staged_and_can_be_taken_back(scaffold: Scaffold, project: Path) -> None:
    before = files(project)
    scaffold("update", cwd=project)
    assert git(project, "diff", "--name-only") == ""
    assert git(project, "diff", "--staged", "--name-only").split() == [
        ".copier-answers.yml",
        "NOTES.md",
        "theirs.txt",
    ]
    git(project, "reset", "--quiet", "--hard")
    assert files(project) == before


def test_the_same_comes_out_as_of_copier_where_copier_loses_nothing(
    scaffold: Scaffold, project: Path, tmp_path: Path
) -> None:
    shutil.copytree(project, tmp_path / "copied")
    update_with_copier(tmp_path / "copied")
    scaffold("update", "shop")
    assert files(project) == files(tmp_path / "copied")


def test_an_answer_is_changed_in_the_same_step(scaffold: Scaffold, project: Path) -> None:
    keys = project / "src/shop/db/keys.py"
    before = keys.read_text()
    result = scaffold("update", "shop", "-d", f"keys={OTHER_KEYS}")
    assert f'  keys: was "{KEYS}", is "{OTHER_KEYS}"\n' in result.stdout
    assert (answers(project)["keys"], answers(project)["_commit"]) == (OTHER_KEYS, "v0.2.0")
    assert keys.read_text() != before
    assert (project / "NOTES.md").read_text().endswith("Our line 8.\n")


def test_an_answer_can_be_changed_without_a_new_version(scaffold: Scaffold, project: Path) -> None:
    result = scaffold("update", "shop", "-d", f"keys={OTHER_KEYS}", "--to", CURRENT)
    assert "shop: v0.1.0, with other answers\n" in result.stdout
    assert (answers(project)["keys"], answers(project)["_commit"]) == (OTHER_KEYS, "v0.1.0")
    assert not (project / "theirs.txt").exists()


def test_a_new_question_takes_its_default_and_is_named(
    scaffold: Scaffold, made: Path, template: Path
) -> None:
    with (template / "copier.yml").open("a") as questions:
        questions.write("\ncolour:\n  type: str\n  default: green\n")
    commit(template, "ask more", tag="v0.2.0")
    result = scaffold("update", "shop")
    assert result.returncode == 0, result.stderr
    assert '  colour: is new, by default "green"\n' in result.stdout
    assert answers(made)["colour"] == "green"


def test_of_an_answer_with_parts_those_that_differ_are_named(scaffold: Scaffold, template: Path) -> None:
    with (template / "copier.yml").open("a") as questions:
        questions.write("\nshapes:\n  type: yaml\n  default: '{circle: 1, square: 2}'\n")
    commit(template, "ask for more", tag="v0.1.1")
    project = make(template, scaffold)
    result = scaffold("update", "shop", "-d", "shapes={circle: 1, square: 3, line: 4}")
    assert result.returncode == 0, result.stderr
    assert "  shapes: other square, line\n" in result.stdout
    recorded: dict[str, Any] = dict(answers(project))
    assert recorded["shapes"] == {"circle": 1, "square": 3, "line": 4}


def test_a_version_can_be_named(scaffold: Scaffold, project: Path, template: Path) -> None:
    (template / PROJECT / "third.txt").write_text("third\n")
    commit(template, "third", tag="v0.3.0")
    assert scaffold("update", "shop", "--to", "0.2.0").returncode == 0
    assert answers(project)["_commit"] == "v0.2.0"
    assert not (project / "third.txt").exists()


def test_a_preview_is_not_taken_unless_it_is_named(scaffold: Scaffold, project: Path, template: Path) -> None:
    (template / PROJECT / "third.txt").write_text("third\n")
    commit(template, "third", tag="v0.3.0rc1")
    assert scaffold("update", "shop").returncode == 0
    assert answers(project)["_commit"] == "v0.2.0"


def test_a_project_below_the_top_of_its_repository_is_updated_alone(
    scaffold: Scaffold, template: Path
) -> None:
    git(scaffold.place, "init", "--quiet")
    (scaffold.place / "beside.txt").write_text("beside\n")
    project = make(template, scaffold)
    commit(scaffold.place, "everything")
    replace(project / "NOTES.md", "Line 8 of shop.", "Our line 8.")
    commit(scaffold.place, "our work")
    replace(template / NOTES, "Line 8 of", "Their line 8 for")
    (template / PROJECT / "theirs.txt").write_text("theirs\n")
    commit(template, "more", tag="v0.2.0")
    result = scaffold("update", cwd=project)
    assert result.returncode == LOOK, result.stderr
    changed = git(scaffold.place, "status", "--porcelain").splitlines()
    assert changed == ["M  shop/.copier-answers.yml", "UU shop/NOTES.md", "A  shop/theirs.txt"]


def test_a_project_from_a_changed_checkout_can_be_updated(template: Path, scaffold: Scaffold) -> None:
    (template / PROJECT / "draft.txt").write_text("not committed\n")
    project = make(template, scaffold)
    commit(template, "now it is", tag="v0.2.0")
    assert scaffold("update", "shop").returncode == 0
    assert answers(project)["_commit"] == "v0.2.0"
    assert (project / "draft.txt").read_text() == "not committed\n"


def test_ten_versions_conflict_only_where_both_sides_changed_the_same_lines(
    scaffold: Scaffold, made: Path, template: Path
) -> None:
    """Models, services and tests are edited before each of ten versions, which edit them too, elsewhere."""
    edited = sorted(
        str(path.relative_to(made))
        for folder in (made / "src/shop", made / "tests")
        for path in folder.glob("*.py")
        if path.name not in {"__init__.py", "__main__.py"}
    )
    assert {"src/shop/models.py", "tests/conftest.py"} <= set(edited)
    changed = [path for path in (template / PACKAGE).glob("*.py.jinja") if path.name[0] not in "_{"]
    changed += (template / PROJECT / "tests").glob("test_*.py.jinja")
    for number in range(1, 11):
        for name in edited:
            with (made / name).open("a") as end:
                end.write(f"\n\ndef ours_{number}() -> int:\n    return {number}\n")
        commit(made, f"our work {number}")
        clashes = number in {4, 8}
        for file in changed:
            text = f"# Theirs: {number}.\n{file.read_text()}"
            file.write_text(
                text + f"\n\n# The end: {number}.\n" * (clashes and file.name == "models.py.jinja")
            )
        (template / PROJECT / f"theirs_{number}.txt").write_text("theirs\n")
        commit(template, f"version {number}", tag=f"v0.1.{number}")
        result = scaffold("update", "shop")
        assert unmerged(made).split() == ["src/shop/models.py"] * clashes, result.stdout
        assert result.returncode == (LOOK if clashes else 0), result.stderr
        if clashes:
            models = made / "src/shop/models.py"
            lines = models.read_text().splitlines(keepends=True)
            models.write_text("".join(line for line in lines if line[:7] not in {"<" * 7, "=" * 7, ">" * 7}))
        commit(made, f"update {number}")
    for name in edited:
        text = (made / name).read_text()
        assert [number for number in range(1, 11) if f"def ours_{number}()" not in text] == []
    text = (made / "src/shop/models.py").read_text()
    assert [number for number in range(1, 11) if f"# Theirs: {number}.\n" not in text] == []
    assert "# The end: 8.\n" in text
    assert answers(made)["_commit"] == "v0.1.10"
    assert git(made, "status", "--porcelain") == ""


# To look at: Copier is silent about each of these, and loses something in all but the first


@pytest.fixture
def surprising(template: Path, scaffold: Scaffold) -> Path:
    """Create a project whose edits meet a version that changes, moves and removes the same files."""
    theirs = template / PROJECT

    def text(name: str) -> str:
        return "".join(f"line {number} of {name}\n" for number in range(9))

    for name in ("renamed", "removed", "deleted", "skipped"):
        (theirs / f"{name}.txt").write_text(text(name))
    for name in ("ours", "both"):
        (theirs / f"{name}.bin").write_bytes(PICTURE)
    (theirs / "folder").mkdir()
    (theirs / "folder/one.txt").write_text(text("one"))
    replace(template / "copier.yml", "_envops:", "_skip_if_exists: [skipped.txt]\n_envops:")
    commit(template, "files", tag="v0.1.1")
    project = make(template, scaffold)
    for name in ("NOTES.md", "renamed.txt", "removed.txt"):
        with (project / name).open("a") as file:
            file.write("mine\n")
    for name in ("deleted.txt", "skipped.txt"):
        (project / name).unlink()
    for name in ("ours.bin", "both.bin"):
        (project / name).write_bytes(b"mine" + PICTURE)
    (project / "folder/mine.txt").write_text("mine\n")
    commit(project, "mine")
    replace(template / NOTES, "Line 8 of", "Their line 8 for")
    git(theirs, "mv", "renamed.txt", "new.txt")
    git(theirs, "mv", "folder", "place")
    git(theirs, "rm", "--quiet", "removed.txt")
    for name in ("deleted", "skipped"):
        (theirs / f"{name}.txt").write_text(f"theirs\n{text(name)}")
    (theirs / "both.bin").write_bytes(b"theirs" + PICTURE)
    commit(template, "theirs", tag="v0.2.0")
    return project


def update_with_copier(project: Path) -> None:
    options: dict[str, Any] = {"defaults": True, "overwrite": True, "quiet": True}
    copier.run_update(project, settings=copier.Settings(), **options)


def test_copier_alone_loses_edits_and_says_nothing(surprising: Path) -> None:
    """If this fails, Copier has become better: see docs/updating.md."""
    update_with_copier(surprising)
    assert unmerged(surprising) == "NOTES.md"
    assert [name for name in ("renamed.txt", "removed.txt") if (surprising / name).exists()] == []
    assert "mine" not in (surprising / "new.txt").read_text()
    assert (surprising / "skipped.txt").exists()
    assert (surprising / "ours.bin").read_bytes() == PICTURE
    assert (surprising / "both.bin").read_bytes() == b"theirs" + PICTURE


def test_an_update_loses_no_edit_and_names_what_needs_a_look(scaffold: Scaffold, surprising: Path) -> None:
    result = scaffold("update", "shop")
    assert result.returncode == LOOK, result.stderr
    assert "mine\n" in (surprising / "new.txt").read_text()
    assert "mine\n" in (surprising / "removed.txt").read_text()
    assert [name for name in ("renamed", "deleted", "skipped") if (surprising / f"{name}.txt").exists()] == []
    for name in ("ours.bin", "both.bin"):
        assert (surprising / name).read_bytes() == b"mine" + PICTURE
    assert names(surprising / "place") == ["mine.txt", "one.txt"]
    assert unmerged(surprising).split() == ["NOTES.md", "both.bin", "removed.txt"]
    found = sections(result.stdout)
    assert found["conflicts, marked"] == ["NOTES.md"]
    assert found["not text"] == ["both.bin"]
    assert found["edited by you and moved"] == ["renamed.txt -> new.txt", "folder/mine.txt -> place/mine.txt"]
    assert found["edited by you and removed by the template"] == ["removed.txt"]
    assert found["deleted by you and changed by the template"] == ["deleted.txt", "skipped.txt"]


def sections(output: str) -> dict[str, list[str]]:
    """Return the lists of an update, by the first words of their titles."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in output.splitlines():
        if line.startswith("  "):
            found[title].append(line.strip())
        else:
            title = line.split(";")[0].split(":")[0]
            found[title] = []
    return found


def test_a_conflict_is_marked_in_the_file_and_in_the_index(
    scaffold: Scaffold, project: Path, template: Path
) -> None:
    replace(template / NOTES, "Line 8 of", "Their line 8 for")
    commit(template, "the same line", tag="v0.3.0")
    result = scaffold("update", "shop")
    assert result.returncode == LOOK
    assert sections(result.stdout)["conflicts, marked"] == ["NOTES.md"]
    assert git(project, "status", "--porcelain", "NOTES.md") == "UU NOTES.md"
    text = (project / "NOTES.md").read_text()
    assert "\n=======\nTheir line 8 for shop.\n>>>>>>> scaffold-v0.3.0\n" in text
    git(project, "checkout", "--quiet", "--theirs", "NOTES.md")
    assert (project / "NOTES.md").read_text().endswith("Their line 8 for shop.\n")


def test_what_only_the_user_deleted_is_no_reason_to_look(
    scaffold: Scaffold, made: Path, template: Path
) -> None:
    (made / "NOTES.md").unlink()
    commit(made, "no notes")
    replace(template / NOTES, "Line 8 of", "Their line 8 for")
    commit(template, "notes", tag="v0.2.0")
    result = scaffold("update", "shop")
    assert result.returncode == 0, result.stderr
    assert sections(result.stdout)["deleted by you and changed by the template"] == ["NOTES.md"]
    assert not (made / "NOTES.md").exists()


def test_revisions_belong_to_the_project_once_they_exist(scaffold: Scaffold, template: Path) -> None:
    """A revision may be applied already, and one more of the template would be a second head."""
    project = make(template, scaffold)
    mine = project / "src/shop/migrations/versions"
    (mine / "0003_mine.py").write_text("# mine\n")
    commit(project, "a revision")
    before = {path.name: path.read_bytes() for path in mine.glob("*.py")}
    domains = template / "template/domains"
    for file in (domains / "ledger/0001_ledger.py.jinja", domains / "bulk_load.py.jinja"):
        file.write_text(f"# Theirs.\n{file.read_text()}")
    (template / PACKAGE / "migrations/versions/0003_theirs.py").write_text("# theirs\n")
    commit(template, "other revisions", tag="v0.2.0")
    result = scaffold("update", "shop")
    assert result.returncode == 0, result.stderr
    assert {path.name: path.read_bytes() for path in mine.glob("*.py")} == before
    left = sections(result.stdout)["changed by the template, but the project's once it exists"]
    assert "src/shop/migrations/versions/0003_theirs.py" in left
    assert len(left) == len(before)


# Only told


def test_a_check_changes_nothing_and_exits_with_1_if_there_is_an_update(
    scaffold: Scaffold, project: Path
) -> None:
    before = state(project)
    stored = {path: path.stat().st_mtime_ns for path in (project / ".git").rglob("*")}
    result = scaffold("update", "shop", "--check")
    assert result.returncode == LOOK, result.stderr
    assert "Nothing was changed." in result.stdout
    assert "  A theirs.txt\n" in result.stdout
    assert state(project) == before
    assert {path: path.stat().st_mtime_ns for path in (project / ".git").rglob("*")}.keys() == stored.keys()


def test_a_check_of_a_project_that_is_up_to_date_exits_with_0(scaffold: Scaffold, made: Path) -> None:
    for options in (["--check"], []):
        result = scaffold("update", "shop", *options)
        assert (result.returncode, result.stdout) == (0, "shop is up to date: v0.1.0\n"), result.stderr
    assert git(made, "status", "--porcelain") == ""


def test_a_project_ahead_of_the_last_release_is_up_to_date(scaffold: Scaffold, template: Path) -> None:
    replace(template / NOTES, "Line 8 of", "Their line 8 for")
    commit(template, "not released")
    project = make(template, scaffold)
    assert answers(project)["_commit"].startswith("v0.1.0-1-g")
    assert scaffold("update", "shop", "--check").returncode == 0


def test_a_check_names_a_file_in_the_way(scaffold: Scaffold, project: Path) -> None:
    hide(project, "theirs.txt")
    result = scaffold("update", "shop", "--check")
    assert (result.returncode, sections(result.stdout)["in the way"]) == (LOOK, ["theirs.txt"])


def hide(project: Path, name: str) -> None:
    """Add a file that git ignores."""
    (project / ".git/info").mkdir(exist_ok=True)
    (project / ".git/info/exclude").write_text(f"{name}\n")
    (project / name).write_text("hidden\n")


# Refused: exit code 2, one or two lines, and the project is as it was


def refused(scaffold: Scaffold, *arguments: str) -> str:
    """Return the message of an update that must not run."""
    before = state(scaffold.place / "shop") if (scaffold.place / "shop/.git").exists() else None
    result = scaffold("update", "shop", *arguments)
    assert result.returncode == REFUSED, result.stdout + result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) <= 2
    if before:
        assert state(scaffold.place / "shop") == before
    return result.stderr


@pytest.mark.parametrize("name", ["NOTES.md", "untracked.txt"])
def test_a_dirty_tree_is_refused(scaffold: Scaffold, project: Path, name: str) -> None:
    (project / name).write_text("not committed\n")
    assert f"{name} is not committed (1 in all). Commit or stash it" in refused(scaffold)


def test_a_folder_that_is_no_project_is_refused(scaffold: Scaffold) -> None:
    assert "shop is no project of scaffold" in refused(scaffold)


def test_a_project_outside_a_repository_is_refused(scaffold: Scaffold, template: Path) -> None:
    make(template, scaffold, "--no-git")
    assert "not committed to a git repository" in refused(scaffold)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "v0.2.1"], "has no version 'v0.2.1' (did you mean 'v0.2.0'?). Newest: v0.2.0, v0.1.0."),
        (["-d", "keyz=uuid"], "'keyz' is not a question (did you mean 'keys'?)"),
        (["-d", "keys=none"], "keys: 'none' is not a choice"),
        (["-d", "keys"], "has no '='"),
        (["--to", "v0.1.0~1"], "is older than v0.1.0, and an update goes forward only"),
    ],
)
def test_bad_input_is_refused(scaffold: Scaffold, project: Path, arguments: list[str], message: str) -> None:
    assert message in refused(scaffold, *arguments)
    assert answers(project)["_commit"] == "v0.1.0"


@pytest.mark.parametrize(
    ("line", "other", "message"),
    [
        ("_commit: v0.1.0\n", "", "does not record the version"),
        ("_commit: v0.1.0", "_commit: v9", "has no v9. Write the version that the project was made from"),
        ("_src_path: ", "_src_path: /nowhere/", "there is no git repository"),
        ("_src_path: /", "_src_path: file:///nowhere/", "does not appear to be a git repository"),
        ("_src_path: /", "_src_path: https://ada:secret@127.0.0.1:1/", "https://***@127.0.0.1:1/"),
        ("_src_path: /", "_src_path: relative/", "a relative path, and there is no git repository"),
    ],
)
def test_an_origin_that_is_not_there_is_named_with_the_way_out(
    scaffold: Scaffold, project: Path, line: str, other: str, message: str
) -> None:
    replace(project / ".copier-answers.yml", line, other)
    commit(project, "another origin")
    text = refused(scaffold)
    assert message in text
    assert "commit that" in text
    assert "secret" not in text


@pytest.mark.usefixtures("project")
def test_a_version_that_cannot_be_rendered_is_refused(scaffold: Scaffold, template: Path) -> None:
    (template / PROJECT / "broken.txt.jinja").write_text("{{ profile.titel }}")
    commit(template, "a fault", tag="v0.3.0")
    assert "The template cannot be rendered" in refused(scaffold)


def test_a_file_that_git_ignores_is_not_replaced(scaffold: Scaffold, project: Path) -> None:
    hide(project, "theirs.txt")
    before = state(project)
    result = scaffold("update", "shop")
    assert (result.returncode, "theirs.txt is in the way" in result.stderr) == (REFUSED, True)
    assert state(project) == before


def test_an_update_that_fails_half_way_is_taken_back(scaffold: Scaffold, project: Path) -> None:
    """A filter that fails stops git after it has written some of the files."""
    (project / ".gitattributes").write_text("* text=auto\ntheirs.txt filter=broken\n")
    commit(project, "attributes")
    git(project, "config", "filter.broken.smudge", "false")
    git(project, "config", "filter.broken.required", "true")
    before = state(project)
    result = scaffold("update", "shop")
    assert (result.returncode, "Cannot write the update" in result.stderr) == (REFUSED, True), result.stderr
    assert state(project) == before


def test_a_project_with_a_relative_origin_is_updated(scaffold: Scaffold, template: Path) -> None:
    """`copier copy` records the template as it was typed, and Copier's own update ends in a traceback."""
    shutil.copytree(template, scaffold.place / "templates/ours")
    command = [sys.executable, "-m", "copier", "copy", "--quiet", "--defaults", "--trust"]
    answers_of_copy = ["-d", "project_name=shop", "templates/ours", "shop"]
    subprocess.run([*command, *answers_of_copy], cwd=scaffold.place, check=True, capture_output=True)
    project = scaffold.place / "shop"
    assert answers(project)["_src_path"] == "templates/ours"
    git(project, "init", "--quiet")
    commit(project, "everything")
    theirs = scaffold.place / "templates/ours"
    (theirs / PROJECT / "theirs.txt").write_text("theirs\n")
    commit(theirs, "more", tag="v0.2.0")
    result = scaffold("update", cwd=project)
    assert result.returncode == 0, result.stderr
    assert (project / "theirs.txt").exists()
    assert answers(project)["_src_path"] == str(theirs)


def test_an_interrupted_update_leaves_the_project_as_it_was(scaffold: Scaffold, project: Path) -> None:
    before = state(project)
    environ = {**os.environ, "PYTHONPATH": str(Path(copier.__file__).parents[1])}
    script = (
        "import sys, time; from scaffold import cli, render\n"
        "render.render = lambda *_, **__: (print('rendering', flush=True), time.sleep(60))\n"
        "sys.argv = ['scaffold', 'update', 'shop']\ncli.main()\n"
    )
    environ["PYTHONPATH"] = str(Path(sys.modules["scaffold"].__file__ or "").parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=scaffold.place, env=environ, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "rendering\n"
    time.sleep(0.1)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 128 + 15
    assert state(project) == before
