"""Answers are checked against copier.yml and the profiles before anything is written."""

import importlib.metadata
import keyword
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import BACKEND, DEFAULT, HOSTILE, QUESTIONNAIRE, ROOT
from scaffold.environment import requirements
from scaffold.errors import BadInput
from scaffold.questions import Question, Questionnaire, read_answers

RESERVED = yaml.safe_load((ROOT / "template/reserved.yml").read_text())
PROFILES = QUESTIONNAIRE.profiles()


def resolve(**given: Any) -> dict[str, Any]:
    return QUESTIONNAIRE.resolve({"project_name": "shop", **given})


def refusal(**given: Any) -> str:
    with pytest.raises(BadInput) as caught:
        resolve(**given)
    return str(caught.value)


# Promises of copier.yml itself


def test_every_question_has_a_default() -> None:
    assert resolve().keys() == QUESTIONNAIRE.questions.keys()


def test_every_question_says_what_it_asks() -> None:
    assert [name for name in QUESTIONNAIRE.askable if not QUESTIONNAIRE.questions[name].help] == []


def test_the_template_needs_no_trust() -> None:
    asks_for_trust = {"_tasks", "_jinja_extensions", "_migrations", "_external_data"}
    assert not asks_for_trust & QUESTIONNAIRE.settings.keys()


def test_every_pack_is_a_choice_and_every_choice_a_pack() -> None:
    packs = {folder.name for folder in (ROOT / "template/backends").iterdir() if folder.is_dir()}
    assert packs == set(QUESTIONNAIRE.choices("backend", {}))


def test_every_profile_answers_the_same_keys() -> None:
    keys = {frozenset(profile) for profile in PROFILES.values()}
    assert len(keys) == 1


@pytest.mark.parametrize("backend", PROFILES)
def test_a_profile_allows_its_own_default_key_strategy(backend: str) -> None:
    assert PROFILES[backend]["key_strategy"] in PROFILES[backend]["key_strategies"]


# Reserved names


def test_every_module_of_the_standard_library_is_reserved() -> None:
    public = {name for name in sys.stdlib_module_names if not name.startswith("_")}
    assert public - set(RESERVED["standard_library"]) == set()


def test_every_keyword_is_reserved() -> None:
    soft = {name for name in keyword.softkwlist if name != "_"}
    # Capitalised keywords are no valid package names anyway.
    assert {name for name in keyword.kwlist if name.islower()} | soft <= set(RESERVED["keywords"])


def test_every_module_of_a_dependency_is_reserved(renders: Path) -> None:
    modules = importlib.metadata.packages_distributions()
    wanted = set(map(bare_name, requirements(renders / DEFAULT)))
    imported = {module for module, names in modules.items() if wanted & {bare_name(name) for name in names}}
    assert imported, "none of the dependencies is installed"
    public = {module for module in imported if module.isidentifier() and not module.startswith("_")}
    assert public - set(RESERVED["dependencies"]) == set()


def bare_name(requirement: str) -> str:
    name: str = re.split(r"[^A-Za-z0-9_.-]", requirement)[0]
    return name.lower().replace("_", "-")


def test_every_folder_of_a_project_is_reserved(renders: Path) -> None:
    top = {path.name for path in (renders / DEFAULT).iterdir() if path.is_dir() and path.name.isidentifier()}
    assert top <= set(RESERVED["folders"])


# Choices and computed answers


def test_a_wrong_backend_gets_the_right_ones_and_the_nearest() -> None:
    message = refusal(backend=BACKEND[:-1])
    assert f"'{BACKEND[:-1]}' is not a choice" in message
    assert f"did you mean '{BACKEND}'?" in message
    assert message.endswith(f"Choices: {', '.join(QUESTIONNAIRE.choices('backend', {}))}.")


@pytest.mark.parametrize("backend", PROFILES)
def test_a_bad_key_strategy_names_the_backend_and_the_valid_ones(backend: str) -> None:
    message = refusal(backend=backend, keys="sequence")
    assert message.startswith(f"keys: 'sequence' is not a choice with backend {backend!r}")
    assert message.endswith(f"Choices: {', '.join(PROFILES[backend]['key_strategies'])}.")


def test_a_wrong_word_in_the_wrong_case_finds_the_right_one() -> None:
    assert "did you mean 'MIT'?" in refusal(licence="mit")


def test_an_unknown_question_gets_the_questions_and_the_nearest() -> None:
    message = refusal(licens="MIT")
    assert "'licens' is not a question (did you mean 'licence'?)" in message
    assert all(name in message for name in QUESTIONNAIRE.askable)


@pytest.mark.parametrize("name", ["profile", "reserved"])
def test_a_computed_answer_cannot_be_given(name: str) -> None:
    assert f"{name!r} is computed from the other answers" in refusal(**{name: "x"})


def test_an_answer_is_cast_to_the_type_of_its_question() -> None:
    assert resolve(python_version=3.12)["python_version"] == "3.12"


@pytest.mark.parametrize(
    ("kind", "word", "answer"),
    [
        ("str", "007", "007"),
        ("int", "7", 7),
        ("float", "0.5", 0.5),
        ("bool", "Yes", True),
        ("bool", "off", False),
        ("yaml", "[1, x]", [1, "x"]),
        ("json", '{"a": null}', {"a": None}),
    ],
)
def test_a_word_of_the_command_line_becomes_the_type_of_its_question(
    kind: str, word: str, answer: object
) -> None:
    assert Question(name="q", type=kind).cast(word) == answer


@pytest.mark.parametrize(
    ("kind", "answer"),
    [("str", None), ("str", ["x"]), ("str", {"x": 1}), ("int", "x"), ("bool", "perhaps"), ("yaml", "[")],
)
def test_an_answer_of_another_type_is_refused(kind: str, answer: object) -> None:
    with pytest.raises(BadInput, match=f"q: .* is not of type {kind}"):
        Question(name="q", type=kind).cast(answer)


# Names

BAD_NAMES = {
    "empty": "",
    "non-ASCII": "größe",
    "other digits": "shop٣",
    "space": "my shop",
    "single quote": "o'shop",
    "double quote": 'a"b',
    "newline": "shop\n",
    "tab": "a\tb",
    "escape": "a\x1b[31mb",
    "null": "a\x00b",
    "Jinja": "{{ 7 * 7 }}",
    "parent": "../shop",
    "path": "a/b",
    "leading dash": "-shop",
    "leading digit": "1shop",
    "200 characters": "a" * 200,
    "shell": "$(id)",
    "dot": "a.b",
    "capital": "Shop",
    "two dashes": "a--b",
    "trailing dash": "a-",
    "surrogate": "a\udcffb",
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
@pytest.mark.parametrize("question", ["project_name", "package_name"])
def test_a_name_that_cannot_be_one_is_refused_with_the_rule(question: str, name: str) -> None:
    message = refusal(**{question: name})
    assert message.startswith(f"{question}: a {question.removesuffix('_name')} name ")
    assert len(message) < 300


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("match", "a keyword of Python"),
        ("import", "a keyword of Python"),
        ("email", "a module of the standard library"),
        ("sqlalchemy", "a module of a dependency"),
        ("tests", "a folder of the project itself"),
    ],
)
def test_a_reserved_package_name_is_refused_with_a_free_one(name: str, why: str) -> None:
    message = refusal(package_name=name)
    assert f"'{name}' is {why}; '{name}_app' is free" in message
    assert resolve(package_name=f"{name}_app")


def test_a_reserved_name_that_nobody_gave_comes_with_the_way_to_give_another() -> None:
    assert refusal(project_name="email").endswith("Add -d package_name=…")


@pytest.mark.parametrize("name", ["postgres", "template1", "pg_shop"])
def test_a_name_that_the_server_keeps_for_itself_is_refused(name: str) -> None:
    assert "is reserved by PostgreSQL or its cluster" in refusal(package_name=name)


# Free text


@pytest.mark.parametrize("question", ["description", "author_name"])
def test_free_text_is_carried_through_whatever_it_holds(question: str) -> None:
    assert resolve(**{question: HOSTILE})[question] == HOSTILE


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\r", "\x7f", "\x85", "\udcff"])
@pytest.mark.parametrize("question", ["description", "author_name"])
def test_what_no_file_can_carry_is_refused(question: str, character: str) -> None:
    message = refusal(**{question: f"a{character}b"})
    assert message.startswith(f"{question}: ")
    assert character not in message


@pytest.mark.parametrize(
    "address", ["ada", "ada@", "@example.org", "a b@example.org", "ada@example", "a@b.c\n"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    assert "an e-mail address looks like name@example.org" in refusal(author_email=address)


# Answers that Copier will ask for


def test_an_answer_that_depends_on_one_still_to_come_is_not_judged_yet() -> None:
    given = {"project_name": "shop", "keys": "not one of the default backend's"}
    QUESTIONNAIRE.resolve(given, asked=True)
    with pytest.raises(BadInput):
        QUESTIONNAIRE.resolve({**given, "backend": BACKEND}, asked=True)


def test_an_answer_that_depends_on_no_other_is_judged_before_anything_is_asked() -> None:
    with pytest.raises(BadInput):
        QUESTIONNAIRE.resolve({"project_name": "shop", "licence": "WTF"}, asked=True)


def test_keys_depend_on_the_backend_through_its_profile() -> None:
    assert QUESTIONNAIRE.dependencies("keys") == {"backend"}


def test_a_question_that_does_not_arise_cannot_be_answered(tmp_path: Path) -> None:
    (tmp_path / "copier.yml").write_text(
        "kind: {default: a, choices: [a, b]}\nextra: {default: x, when: \"{{ kind == 'b' }}\"}\n"
    )
    questionnaire = Questionnaire(tmp_path)
    assert questionnaire.resolve({"kind": "b", "extra": "y"})["extra"] == "y"
    with pytest.raises(BadInput, match="extra: this question is not asked with kind 'a'"):
        questionnaire.resolve({"extra": "y"})


# Answers files


def test_answers_are_read_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "answers.yml"
    file.write_text("keys: uuid\npython_version: '3.12'\n")
    assert read_answers(file) == {"keys": "uuid", "python_version": "3.12"}


def test_the_answers_file_of_a_project_can_be_given_as_it_is(renders: Path) -> None:
    answers = read_answers(renders / DEFAULT / ".copier-answers.yml")
    assert resolve(**answers)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"a: [", r"is not YAML \(line 1\)"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"\x80", "is not YAML"),
        (b"- a", "is not a mapping"),
        (b"just text", "is not a mapping"),
        (b"", "is not a mapping"),
        (b"1: x", "is not a mapping"),
        (b"a: !!python/object/apply:os.system [id]", "is not YAML"),
    ],
)
def test_an_answers_file_that_is_none_says_what_it_should_hold(
    tmp_path: Path, content: bytes, why: str
) -> None:
    file = tmp_path / "answers.yml"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=why):
        read_answers(file)


def test_a_missing_answers_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"answers\.yml cannot be read: No such file"):
        read_answers(tmp_path / "answers.yml")
