"""The matrix derives variants from copier.yml and the profiles, and runs their tests."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from conftest import QUESTIONNAIRE, VARIANTS
from scaffold import environment, matrix
from scaffold.questions import Questionnaire


def template(folder: Path, questions: str, **profiles: object) -> Questionnaire:
    """Write a small template with a pack for each profile."""
    for name, profile in profiles.items():
        pack = folder / "template/backends" / name
        pack.mkdir(parents=True)
        (pack / "profile.yml").write_text(yaml.safe_dump(profile))
    (folder / "copier.yml").write_text(
        "project_name: {default: shop}\n"
        f"backend: {{choices: {list(profiles)}, default: {next(iter(profiles))}}}\n"
        "profile:\n  type: yaml\n  when: false\n"
        "  default: \"{% include 'template/backends/' ~ backend ~ '/profile.yml' %}\"\n" + questions
    )
    return Questionnaire(folder)


KEYS = "keys: {choices: '{{ profile.strategies | to_json }}', default: '{{ profile.strategies[0] }}'}\n"


def test_the_default_comes_first() -> None:
    first = next(iter(VARIANTS.values()))
    defaults = QUESTIONNAIRE.resolve({"project_name": "shop"})
    assert QUESTIONNAIRE.resolve(first.answers) == defaults


def test_every_key_strategy_of_every_backend_is_a_variant() -> None:
    pairs = {(one.answers["backend"], one.answers["keys"]) for one in VARIANTS.values()}
    profiles = QUESTIONNAIRE.profiles()
    assert pairs == {(name, key) for name in profiles for key in profiles[name]["key_strategies"]}


def test_every_choice_of_every_question_is_in_some_variant() -> None:
    resolved = [QUESTIONNAIRE.resolve(one.answers) for one in VARIANTS.values()]
    for name in QUESTIONNAIRE.askable:
        tried = {answers[name] for answers in resolved}
        assert tried >= set(QUESTIONNAIRE.choices(name, resolved[0]))


def test_what_depends_on_the_backend_is_crossed_with_it(tmp_path: Path) -> None:
    questionnaire = template(tmp_path, KEYS, a={"strategies": ["x", "y"]}, b={"strategies": ["z"]})
    assert [one.name for one in matrix.variants(questionnaire)] == ["a-x", "a-y", "b-z"]


def test_what_depends_on_nothing_is_tried_once(tmp_path: Path) -> None:
    questions = KEYS + "licence: {choices: [MIT, BSD 3], default: MIT}\naio: {type: bool, default: false}\n"
    questionnaire = template(tmp_path, questions, a={"strategies": ["x"]}, b={"strategies": ["z"]})
    assert [one.name for one in matrix.variants(questionnaire)] == [
        "a-x",
        "b-z",
        "a-x-licence-bsd-3",
        "a-x-aio",
    ]


def test_a_profile_can_have_more_questions_tried_with_the_rest(tmp_path: Path) -> None:
    questions = KEYS + "aio: {type: bool, default: false}\n"
    questionnaire = template(
        tmp_path, questions, a={"strategies": ["x", "y"], "crossed": ["aio"]}, b={"strategies": ["z"]}
    )
    assert [one.name for one in matrix.variants(questionnaire)] == [
        *("a-x-no-aio", "a-x-aio", "a-y-aio"),
        "b-z",
    ]


def test_a_question_that_only_some_backends_have_is_a_variant_of_those(tmp_path: Path) -> None:
    questions = "aio: {type: bool, default: false, when: \"{{ backend == 'b' }}\"}\n"
    questionnaire = template(tmp_path, questions, a={}, b={})
    assert [one.name for one in matrix.variants(questionnaire)] == ["a", "b-no-aio", "b-aio"]


def test_a_profile_can_have_such_a_question_tried_once(tmp_path: Path) -> None:
    questions = KEYS + "tls: {type: bool, default: true, when: \"{{ backend == 'b' }}\"}\n"
    questionnaire = template(
        tmp_path, questions, a={"strategies": ["x"]}, b={"strategies": ["y", "z"], "once": ["tls"]}
    )
    assert [one.name for one in matrix.variants(questionnaire)] == ["a-x", "b-y", "b-z", "b-y-no-tls"]


# Running them


def project(folder: Path, test: str, requires: str = ">=3.11") -> Path:
    folder.mkdir()
    (folder / "pyproject.toml").write_text(f'[project]\nname = "x"\nrequires-python = "{requires}"\n')
    (folder / "test_it.py").write_text(test)
    return folder


def test_passing_tests_pass(tmp_path: Path) -> None:
    outcome = matrix.run_tests(project(tmp_path / "x", "def test_it(): pass\n"), sys.executable)
    assert (outcome.variant, outcome.status) == ("x", "PASS")
    assert "1 passed" in outcome.summary


def test_failing_tests_fail_and_their_output_is_kept(tmp_path: Path) -> None:
    outcome = matrix.run_tests(project(tmp_path / "x", "def test_it(): assert not 'why'\n"), sys.executable)
    assert outcome.status == "FAIL"
    assert "assert not 'why'" in (tmp_path / "x.log").read_text()


def test_no_tests_at_all_is_a_failure(tmp_path: Path) -> None:
    assert matrix.run_tests(project(tmp_path / "x", ""), sys.executable).status == "FAIL"


def test_a_project_for_a_newer_python_is_skipped_with_the_reason(tmp_path: Path) -> None:
    outcome = matrix.run_tests(project(tmp_path / "x", "", requires=">=3.99"), sys.executable)
    assert (outcome.status, outcome.summary) == ("SKIP", "needs Python 3.99")


def test_tests_that_do_not_end_are_ended_with_all_that_they_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "GRACE", 1.0)
    hangs = (
        "import pathlib, signal, subprocess, time\n"
        "def test_it():\n"
        "    signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "    child = subprocess.Popen(['sleep', '60'])\n"
        "    pathlib.Path('pid').write_text(str(child.pid))\n"
        "    time.sleep(60)\n"
    )
    outcome = matrix.run_tests(project(tmp_path / "x", hangs), sys.executable, timeout=2.0)
    assert outcome.status == "FAIL"
    assert outcome.summary.startswith("stopped after 2 s")
    child = int((tmp_path / "x/pid").read_text())
    deadline = time.monotonic() + 5
    while is_running(child):
        assert time.monotonic() < deadline, "the child of the tests is still there"
        time.sleep(0.05)


def is_running(process: int) -> bool:
    """Tell whether a process exists and is not a zombie."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False
    )
    return state.stdout.strip()[:1] not in {"", "Z"}


def test_an_interpreter_is_shared_if_it_has_everything() -> None:
    assert environment.is_satisfied(["pytest>=7", "pyyaml", 'nothing-of-the-kind; python_version < "3"'])
    assert not environment.is_satisfied(["pytest<1"])
    assert not environment.is_satisfied(["nothing-of-the-kind"])


def test_requirements_are_those_of_the_project_and_of_its_tests(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\ndependencies = ["a>=1"]\n'
        '[project.optional-dependencies]\ndev = ["b"]\ndocs = ["no"]\n'
        '[dependency-groups]\ndev = ["c", {include-group = "x"}]\n'
    )
    assert environment.requirements(tmp_path) == ["a>=1", "b", "c"]
