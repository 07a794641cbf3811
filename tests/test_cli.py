"""The command line as a user meets it: its output, its exit code and the files that it leaves."""

import contextlib
import fcntl
import json
import os
import pty
import select
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import BACKEND, DEFAULT, QUESTIONNAIRE, ROOT, VARIANTS, Scaffold, files, names
from scaffold import __version__
from scaffold.cli import NEXT_STEPS

REFUSED = 2


# Start-up


def test_help_imports_nothing_heavy() -> None:
    probe = (
        "import sys; sys.argv = ['scaffold', '--help']\n"
        "from scaffold.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", probe],
        env={**os.environ, "PYTHONPATH": str(ROOT / "generator")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage: scaffold" in result.stdout
    imported = set(result.stdout.splitlines()[-1].split())
    assert not imported & {"copier", "jinja2", "yaml", "pydantic", "rich", "plumbum", "sqlalchemy"}


def test_version_is_the_one_of_the_package(scaffold: Scaffold) -> None:
    assert scaffold("--version").stdout == f"scaffold {__version__}\n"


def test_no_command_lists_the_commands(scaffold: Scaffold) -> None:
    shown = scaffold().stdout + scaffold().stderr
    assert all(command in shown for command in ("new", "backends", "demo", "matrix"))


# new


def test_new_makes_a_project_with_a_first_commit(scaffold: Scaffold) -> None:
    result = scaffold("new", "shop")
    assert result.returncode == 0, result.stderr
    project = scaffold.place / "shop"
    log = subprocess.run(
        ["git", "log", "--format=%an %s"], cwd=project, capture_output=True, text=True, check=True
    ).stdout
    assert log == "Ada Start from the scaffold\n"
    assert names(scaffold.place) == ["shop"]


def test_new_ends_with_steps_that_can_be_pasted(scaffold: Scaffold) -> None:
    result = scaffold("new", "-d", "project_name=shop", "my $shop's", "--no-git")
    assert result.returncode == 0, result.stderr
    first, *steps = result.stdout.splitlines()
    assert first.startswith("Created my $shop's: ")
    assert [step.strip() for step in steps] == [
        f"cd {shlex.quote(chr(109) + 'y $shop' + chr(39) + 's')}",
        *NEXT_STEPS,
    ]
    entered = subprocess.run(
        ["sh", "-c", f"{steps[0]} && ls Makefile"],
        cwd=scaffold.place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert entered.stdout == "Makefile\n"


def test_a_folder_with_a_leading_dash_can_be_entered(scaffold: Scaffold) -> None:
    result = scaffold("new", "-d", "project_name=shop", "--no-git", "--", "-shop")
    assert "  cd ./-shop\n" in result.stdout


def test_the_steps_do_not_enter_the_folder_one_is_in(scaffold: Scaffold, tmp_path: Path) -> None:
    here = tmp_path / "shop"
    here.mkdir()
    result = scaffold("new", ".", "--no-git", cwd=here)
    assert result.returncode == 0, result.stderr
    assert "cd " not in result.stdout


def test_every_next_step_is_a_target_of_the_project(renders: Path) -> None:
    makefile = (renders / DEFAULT / "Makefile").read_text()
    assert [step for step in NEXT_STEPS if f"\n{step.removeprefix('make ')}:" not in f"\n{makefile}"] == []


def test_options_become_answers(scaffold: Scaffold) -> None:
    answers = scaffold.place / "answers.yml"
    answers.write_text("keys: identity\nlicence: Apache-2.0\ndescription: from the file\n")
    options = ["--answers", str(answers), "--keys", "uuid", "-d", "description=a=b c", "--no-git"]
    result = scaffold("new", "shop", *options)
    assert result.returncode == 0, result.stderr
    recorded = (scaffold.place / "shop/.copier-answers.yml").read_text()
    for line in ("keys: uuid", "licence: Apache-2.0", "description: a=b c"):
        assert line in recorded


def test_output_is_plain_without_a_terminal(scaffold: Scaffold) -> None:
    result = scaffold("new", "shop", env={"FORCE_COLOR": ""})
    assert "\x1b" not in result.stdout + result.stderr


def test_dry_run_prints_answers_and_files_and_writes_nothing(scaffold: Scaffold, renders: Path) -> None:
    result = scaffold("new", "shop", "--keys", "uuid", "-d", "asyncio=yes", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert '  keys: "uuid"\n' in result.stdout
    assert '  licence: "MIT"  (default)\n' in result.stdout
    listed = result.stdout.split("files in shop\n")[1].split("\n")
    variant = f"{BACKEND}-uuid-asyncio"
    assert VARIANTS[variant].answers["asyncio"] is True
    assert {line.strip() for line in listed if line} == set(files(renders / variant))
    assert names(scaffold.place) == []


# On a terminal

DOWN, ENTER, INTERRUPT = b"\x1b[B", b"\r", b"\x03"
# Seconds; arbitrary, for a loaded machine.
PATIENCE = 60


def at_a_terminal(place: Path, arguments: list[str], *typed: tuple[str, bytes]) -> tuple[int, str]:
    """Run `scaffold` on a pseudo-terminal of 80 columns; press keys when a text is shown."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    process = subprocess.Popen(
        [sys.executable, "-m", "scaffold", *arguments],
        cwd=place,
        env={**environ, "PYTHONPATH": str(ROOT / "generator"), "TERM": "xterm", "UV_OFFLINE": "1"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown, read, waiting = b"", 0, list(typed)
    deadline = time.monotonic() + PATIENCE
    # Reading fails after the last writer has closed its end.
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 0.3)[0]:
                if waiting and waiting[0][0].encode() in shown[read:]:
                    read = len(shown)
                    os.write(ours, waiting.pop(0)[1])
                continue
            shown += os.read(ours, 65536)
            if shown.endswith(b"\x1b[6n"):  # A request for the position of the cursor.
                os.write(ours, b"\x1b[1;1R")
    os.close(ours)
    output = shown.decode(errors="replace")
    assert not waiting, f"never shown: {waiting[0][0]!r}\n{output}"
    return process.wait(timeout=PATIENCE), output


def all_but(*asked: str) -> list[str]:
    """Return a command that gives every answer but those, so that these are asked for."""
    answers = QUESTIONNAIRE.resolve({"project_name": "shop"})
    arising = [name for name in QUESTIONNAIRE.askable if QUESTIONNAIRE.applies(name, answers)]
    return ["new", "shop", *(f"-d{name}={answers[name]}" for name in arising if name not in asked)]


LICENCE = QUESTIONNAIRE.questions["licence"].help
PLAN = "Create it?"


def test_what_is_not_given_is_asked_for(tmp_path: Path) -> None:
    code, shown = at_a_terminal(tmp_path, all_but("licence"), (LICENCE, DOWN + ENTER), (PLAN, ENTER))
    assert code == 0, shown
    assert "licence: Apache-2.0\n" in (tmp_path / "shop/.copier-answers.yml").read_text()
    assert "make up" in shown


def test_what_is_asked_for_can_be_refused(tmp_path: Path) -> None:
    code, shown = at_a_terminal(tmp_path, all_but("licence"), (LICENCE, INTERRUPT))
    assert code == 130
    assert "Traceback" not in shown
    assert names(tmp_path) == []


def test_backends_and_keys_are_one_line_each_with_their_summaries(tmp_path: Path) -> None:
    backend, keys = (QUESTIONNAIRE.questions[name].help for name in ("backend", "keys"))
    typed = ((backend, ENTER), (keys, ENTER), (PLAN, b"n" + ENTER))
    _, shown = at_a_terminal(tmp_path, all_but("backend", "keys"), *typed)
    profiles = QUESTIONNAIRE.profiles()
    lines = [f"{name}: {profile['summary']}" for name, profile in profiles.items()]
    for folder in profiles[BACKEND]["key_strategies"].values():
        profile = yaml.safe_load((ROOT / "template/keys" / folder / "profile.yml").read_text())
        lines.append(profile["summary"])
    assert [line for line in lines if line not in shown] == []


def test_every_choice_fits_a_line_of_80_columns() -> None:
    for backend in QUESTIONNAIRE.choices("backend", {}):
        answers = QUESTIONNAIRE.resolve({"project_name": "shop", "backend": backend})
        for name in ("backend", "keys"):
            labels = yaml.safe_load(QUESTIONNAIRE.evaluate(QUESTIONNAIRE.questions[name].choices, answers))
            assert [label for label in labels if len(label) > 76] == []
            assert list(labels.values()) == QUESTIONNAIRE.choices(name, answers)


def test_the_plan_is_shown_before_anything_is_written(tmp_path: Path) -> None:
    code, shown = at_a_terminal(tmp_path, all_but("licence"), (LICENCE, ENTER), (PLAN, b"n" + ENTER))
    assert code == 1
    plan = shown[shown.index("To be created in shop") :]
    for words in (
        BACKEND,
        "licence         MIT",
        "a git repository with a first commit",
        "nothing was written",
    ):
        assert words in plan
    assert names(tmp_path) == []


def test_the_author_of_gits_configuration_is_offered_on_a_terminal_only(
    tmp_path: Path, scaffold: Scaffold
) -> None:
    author, mail = (QUESTIONNAIRE.questions[name].help for name in ("author_name", "author_email"))
    typed = ((author, ENTER), (mail, ENTER), (PLAN, ENTER))
    code, shown = at_a_terminal(tmp_path, all_but("author_name", "author_email"), *typed)
    assert code == 0, shown
    recorded = (tmp_path / "shop/.copier-answers.yml").read_text()
    assert "author_email: ada@example.org\nauthor_name: Ada\n" in recorded
    assert scaffold("new", "shop").returncode == 0
    assert "author_name: shop developers\n" in (scaffold.place / "shop/.copier-answers.yml").read_text()


def test_an_author_that_no_project_can_have_is_not_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = tmp_path / "config"
    configuration.write_text("[user]\nname = Ada\nemail = ada@localhost\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(configuration))
    mail = QUESTIONNAIRE.questions["author_email"].help
    code, shown = at_a_terminal(tmp_path, all_but("author_email"), (mail, ENTER), (PLAN, ENTER))
    assert code == 0, shown
    assert "author_email: ''\n" in (tmp_path / "shop/.copier-answers.yml").read_text()


@pytest.mark.parametrize("arguments", [["new", "shop", "--yes"], all_but()], ids=["yes", "all given"])
def test_nothing_is_asked_if_nothing_is_open(tmp_path: Path, arguments: list[str]) -> None:
    code, shown = at_a_terminal(tmp_path, arguments)
    assert code == 0, shown
    assert PLAN not in shown
    assert "author_name: shop developers\n" in (tmp_path / "shop/.copier-answers.yml").read_text()


def test_copier_asks_with_the_same_lines(tmp_path: Path, pristine: Path) -> None:
    """`copier copy` shows the labels, and its answers file holds the name."""
    label = f"{BACKEND}: {QUESTIONNAIRE.profiles()[BACKEND]['summary']}"
    given = [option for option in all_but("backend")[2:] if not option.startswith("-dkeys")]
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "copier", "copy", *given, str(pristine), "shop"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):
        while label.encode() not in shown and (some := os.read(ours, 65536)):
            shown += some
            if shown.endswith(b"\x1b[6n"):
                os.write(ours, b"\x1b[1;1R")
    process.terminate()
    process.wait(timeout=PATIENCE)
    os.close(ours)
    assert label.encode() in shown


# Bad input: one clear message, exit code 2, nothing written

BAD = {
    "unknown backend": (
        ["--backend", BACKEND[:-1]],
        [f"'{BACKEND[:-1]}'", f"did you mean '{BACKEND}'?", "Choices: ", BACKEND],
    ),
    "unknown key strategy": (["--keys", "uid"], ["'uid'", f"backend '{BACKEND}'", "did you mean 'uuid'?"]),
    "unknown question": (["-d", "licens=MIT"], ["'licens' is not a question", "did you mean 'licence'?"]),
    "unknown choice": (["-d", "licence=GPL"], ["'GPL' is not a choice", "Apache-2.0"]),
    "computed answer": (["-d", "profile={}"], ["'profile' is computed"]),
    "no equals sign": (["-d", "licence"], ["'licence' has no '='"]),
    "no question": (["-d", "=MIT"], ["'' is not a question"]),
    "one answer twice": (["-d", "keys=uuid", "-d", "keys=identity"], ["twice", "'uuid'", "'identity'"]),
    "two ways that disagree": (
        ["--keys", "uuid", "-d", "keys=identity"],
        ["--keys uuid and -d keys=identity contradict"],
    ),
    "Jinja in a name": (["-d", "project_name={{ 7 * 7 }}"], ["project_name: a project name is"]),
    "reserved package": (["-d", "package_name=sqlalchemy"], ["sqlalchemy_app' is free"]),
    "control character": (
        ["-d", "description=a\x1b[31mb"],
        ["description: it contains a character that no configuration file can hold"],
    ),
    "bytes that are no text": (
        ["-d", b"author_name=a\xffb"],
        ["author_name: it contains a character that no configuration file can hold"],
    ),
    "no such answers file": (["--answers", "none.yml"], ["none.yml cannot be read: No such file"]),
    "a folder as answers file": (["--answers", "."], ["cannot be read: Is a directory"]),
    "unknown option": (["--bakend", BACKEND], ["No such option: --bakend"]),
}


@pytest.mark.parametrize(("arguments", "expected"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_message_and_nothing_is_written(
    scaffold: Scaffold, arguments: list[Any], expected: list[str]
) -> None:
    result = scaffold("new", "shop", *arguments)
    assert result.returncode == REFUSED
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "\x1b" not in result.stderr
    assert [words for words in expected if words not in result.stderr] == []
    assert names(scaffold.place) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("keys: [", "is not YAML (line 1)"),
        ("- keys", "is not a mapping"),
        ("keyz: uuid\n", "'keyz' is not a question (did you mean 'keys'?)"),
        ("keys: null\n", "keys: None is not of type str"),
        ("profile: {}\n", "'profile' is computed"),
    ],
)
def test_bad_answers_files_are_bad_input(
    scaffold: Scaffold, tmp_path: Path, content: str, expected: str
) -> None:
    file = tmp_path / "answers.yml"
    file.write_text(content)
    result = scaffold("new", "shop", "--answers", file)
    assert result.returncode == REFUSED
    assert expected in result.stderr
    assert names(scaffold.place) == []


@pytest.mark.parametrize(
    "name", ["My Shop", "größe", "1shop", "a" * 200, "shop\n", "{{ x }}", "import", "o'shop"]
)
def test_a_folder_whose_name_cannot_name_a_project_needs_another_name(scaffold: Scaffold, name: str) -> None:
    result = scaffold("new", "--", name)
    assert result.returncode == REFUSED
    assert "_name" in result.stderr
    assert "Add -d " in result.stderr
    assert names(scaffold.place) == []


def test_no_folder_is_not_the_current_one(scaffold: Scaffold) -> None:
    result = scaffold("new", "", "-d", "project_name=shop")
    assert (result.returncode, names(scaffold.place)) == (REFUSED, [])
    assert "no folder is named" in result.stderr


def test_a_folder_that_is_not_empty_is_left_alone(scaffold: Scaffold) -> None:
    target = scaffold.place / "shop"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    result = scaffold("new", "shop")
    assert result.returncode == REFUSED
    assert "shop is not empty: it holds mine.txt" in result.stderr
    assert files(target) == {"mine.txt": b"mine"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("file", "file exists and is not a folder"),
        ("file/shop", "Not a directory"),
        ("link", "link exists and is not a folder"),
        ("/proc/shop", "/proc is not writable"),
        ("/proc/a/b/shop", "/proc is not writable"),
    ],
)
def test_a_target_that_cannot_be_written_is_bad_input_even_for_root(
    scaffold: Scaffold, path: str, expected: str
) -> None:
    if path.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    (scaffold.place / "file").write_text("mine")
    (scaffold.place / "link").symlink_to("nowhere")
    result = scaffold("new", path, "-d", "project_name=shop")
    assert result.returncode == REFUSED
    assert expected in result.stderr
    assert names(scaffold.place) == ["file", "link"]


def test_without_git_the_way_out_is_named(scaffold: Scaffold, tmp_path: Path) -> None:
    nothing = tmp_path / "empty"
    nothing.mkdir()
    refused = scaffold("new", "shop", env={"PATH": str(nothing)})
    assert refused.returncode == REFUSED
    assert "git is not on PATH" in refused.stderr
    assert "--no-git" in refused.stderr
    assert scaffold("new", "shop", "--no-git", env={"PATH": str(nothing)}).returncode == 0


def test_a_program_that_lies_about_under_the_name_of_git_is_left_alone(scaffold: Scaffold) -> None:
    stray = scaffold.place / "git"
    stray.write_text("#!/bin/sh\n: > ran\n")
    stray.chmod(0o755)
    made = scaffold("new", "shop")
    assert made.returncode == 0, made.stderr
    assert sorted(path.name for path in scaffold.place.iterdir()) == ["git", "shop"]


def test_a_traceback_is_shown_to_those_who_ask(scaffold: Scaffold) -> None:
    result = scaffold("new", "shop", "--keys", "none", "--debug")
    assert result.returncode == REFUSED
    assert "Traceback" in result.stderr


def test_a_fault_of_the_template_is_not_blamed_on_the_answers(scaffold: Scaffold, checkout: Path) -> None:
    (checkout / "template/project/broken.txt.jinja").write_text("{{ profile.titel }}")
    result = scaffold("new", "shop", root=checkout)
    assert result.returncode == 1
    assert "This is a fault of the template, not of your answers" in result.stderr
    assert "titel" in result.stderr
    assert "Traceback" not in result.stderr
    assert names(scaffold.place) == []


# backends


def test_backends_lists_every_pack(scaffold: Scaffold) -> None:
    shown = scaffold("backends").stdout
    for name, profile in QUESTIONNAIRE.profiles().items():
        assert name in shown
        assert profile["title"] in shown
        assert all(key in shown for key in profile["key_strategies"])
    assert len(shown.splitlines()) == 6 * len(QUESTIONNAIRE.profiles())


def test_a_reader_that_has_seen_enough_is_no_error(scaffold: Scaffold) -> None:
    command = f"{shlex.quote(sys.executable)} -m scaffold backends | head -n 1"
    shown = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=scaffold.place,
        env={**os.environ, "PYTHONPATH": str(ROOT / "generator"), "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (len(shown.stdout.splitlines()), shown.stderr) == (1, "")


def test_backends_as_json_holds_what_a_program_asks_for(scaffold: Scaffold) -> None:
    rows = json.loads(scaffold("backends", "--json").stdout)
    for name, profile in QUESTIONNAIRE.profiles().items():
        row = rows[name]
        assert row["default_keys"] == profile["key_strategy"]
        assert row["default_keys"] in row["keys"]
        assert {"title", "summary", "topology", "nodes", "image", "sqlalchemy", "embedded"} < row.keys()


# matrix


def test_matrix_renders_the_variants_that_are_asked_for(scaffold: Scaffold) -> None:
    result = scaffold("matrix", "out", "--only", "licence", "--json")
    assert result.returncode == 0, result.stderr
    listed = json.loads(result.stdout)
    assert listed == {name: dict(one.answers) for name, one in VARIANTS.items() if "licence" in name}
    assert names(scaffold.place / "out") == sorted(listed)


def test_matrix_says_which_variants_there_are(scaffold: Scaffold) -> None:
    result = scaffold("matrix", "out", "--only", "nothing")
    assert result.returncode == REFUSED
    assert DEFAULT in result.stderr
    assert names(scaffold.place) == []


def test_matrix_replaces_nothing(scaffold: Scaffold) -> None:
    (scaffold.place / DEFAULT).mkdir()
    result = scaffold("matrix", ".", "--only", DEFAULT)
    assert result.returncode == REFUSED
    assert f"{DEFAULT} exists" in result.stderr


def test_matrix_exits_with_1_if_a_variant_fails(scaffold: Scaffold, checkout: Path) -> None:
    tests = checkout / "template/project/tests"
    shutil.rmtree(tests)
    tests.mkdir()
    (tests / "test_fails.py").write_text("def test_fails() -> None:\n    raise AssertionError\n")
    result = scaffold("matrix", "out", "--run", "--json", "--only", f"{BACKEND}-uuid-asyncio", root=checkout)
    assert result.returncode == 1, result.stderr
    (outcome,) = json.loads(result.stdout)
    assert outcome["status"] == "FAIL"
    assert "1 failed" in outcome["summary"]
