"""Questions and answers: read `copier.yml` and the profiles as data, and check answers against them.

Copier checks answers only while it renders, one at a time, and with a traceback for a wrong choice. This
module evaluates the same file in the same Jinja environment beforehand, so that a wrong answer is refused,
with the valid ones, before anything is written. Copier then receives the given answers alone and computes the
others itself, exactly as for `copier copy`.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox
import yaml

from scaffold.errors import BadInput, TemplateFault

TRUE = {"y", "yes", "t", "true", "on", "1"}
FALSE = {"n", "no", "f", "false", "off", "0"}
# Lines of an existing project's answers file that are not answers; such a file may be given as it is.
ORIGIN = {"_commit", "_src_path"}


# PyYAML's loader in C is ten times as fast; it exists if PyYAML was built with libyaml.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _load(text: str) -> Any:
    return yaml.load(text, LOADER)  # noqa: S506 - a safe loader


@dataclass(frozen=True, kw_only=True)
class Question:
    """One entry of copier.yml."""

    name: str
    type: str = "str"
    help: str = ""
    default: Any = None
    choices: list[Any] | dict[str, Any] | str = ""
    validator: str = ""
    when: bool | str = True

    @property
    def is_computed(self) -> bool:
        """True if the answer follows from other answers and cannot be given."""
        return self.when is False

    def cast(self, value: Any) -> Any:
        """Convert an answer, such as a word of the command line, to the type of the question, as Copier does.

        Raises:
            BadInput: the answer is not of that type.
        """
        try:
            return self._cast(value)
        except (TypeError, ValueError, yaml.YAMLError) as error:
            raise BadInput(f"{self.name}: {value!r} is not of type {self.type}.") from error

    def _cast(self, value: Any) -> Any:
        match self.type:
            case "str" | "path" if isinstance(value, str):
                return value
            case "str" if isinstance(value, int | float):
                return str(value)
            case "int" | "float" if value is not None:
                return int(value) if self.type == "int" else float(value)
            case "bool" if isinstance(value, bool):
                return value
            case "bool" if str(value).strip().lower() in TRUE | FALSE:
                return str(value).strip().lower() in TRUE
            case "json" | "yaml":
                load = json.loads if self.type == "json" else _load
                return load(value) if isinstance(value, str) else value
            case _:
                raise TypeError(self.type)


class Questionnaire:
    """The questions of a template, in order."""

    def __init__(self, root: Path) -> None:
        """Read `root`/copier.yml."""
        self.root = root
        content: dict[str, Any] = _load((root / "copier.yml").read_text(encoding="utf-8"))
        self.settings = {name: value for name, value in content.items() if name.startswith("_")}
        fields = Question.__dataclass_fields__
        self.questions = {
            name: Question(name=name, **{key: value for key, value in entry.items() if key in fields})
            for name, entry in content.items()
            if not name.startswith("_")
        }

    @property
    def askable(self) -> list[str]:
        """Names of the questions that a user can answer."""
        return [name for name, question in self.questions.items() if not question.is_computed]

    def choices(self, name: str, answers: Mapping[str, Any]) -> list[Any]:
        """Return the values that a question allows, given the answers before it; empty for free text."""
        return list(self.labels(name, answers))

    def labels(self, name: str, answers: Mapping[str, Any]) -> dict[Any, str]:
        """Return the values that a question allows, each with its line in the list of choices."""
        question = self.questions[name]
        choices = question.choices
        if isinstance(choices, str):
            choices = _load(self.evaluate(choices, answers)) or []
        pairs = choices.items() if isinstance(choices, dict) else ((str(value), value) for value in choices)
        return {question.cast(value): label for label, value in pairs}

    def applies(self, name: str, answers: Mapping[str, Any]) -> bool:
        """Tell whether a question is asked, given the answers before it."""
        applies = self.evaluate(self.questions[name].when, answers)
        return applies if isinstance(applies, bool) else applies.strip().lower() in TRUE

    def profiles(self) -> dict[str, dict[str, Any]]:
        """Return the profile of every backend, the default backend first."""
        default = self.questions["backend"].default
        names = sorted(self.choices("backend", {}), key=lambda name: name != default)
        return {name: self.resolve({"project_name": "shop", "backend": name})["profile"] for name in names}

    def resolve(
        self, given: Mapping[str, Any], *, asked: bool = False, recorded: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return every answer, computed ones included.

        Args:
            given: answers by question; all others take their defaults.
            asked: True if Copier will ask for the answers that are not given. Answers that depend on one of
                those are not checked.
            recorded: earlier answers, which replace the defaults of the questions that still are asked.

        Raises:
            BadInput: an answer is invalid, or its question is unknown or not asked; reports the first one.
        """
        self._refuse_unknown(given)
        recorded = recorded or {}
        answers: dict[str, Any] = {}
        open_questions: set[str] = set()
        for name, question in self.questions.items():
            if question.is_computed:
                answers[name] = question.cast(self.evaluate(question.default, answers))
                continue
            applies = self.applies(name, answers)
            if name in given and not applies:
                raise BadInput(f"{name}: this question is not asked{self._given_that(name, answers)}.")
            settled = not self.dependencies(name) & open_questions
            is_given = name in given and settled
            if is_given:
                answer = given[name]
            elif name in recorded and applies:
                answer = recorded[name]
            else:
                answer = self._default(question, answers)
            answers[name] = question.cast(answer)
            if applies and settled:
                self.check(name, answers, is_given=is_given)
            if asked and not is_given:
                open_questions.add(name)
        return answers

    def dependencies(self, name: str) -> set[str]:
        """Return the askable questions that an answer is checked against, also through computed ones."""
        question = self.questions[name]
        texts = [
            question.validator,
            question.choices,
            question.when,
            *([question.default] * question.is_computed),
        ]
        found: set[str] = set()
        for text in texts:
            if isinstance(text, str):
                found |= jinja2.meta.find_undeclared_variables(self._environment.parse(text))
        named = (found & self.questions.keys()) - {name}
        computed = {other for other in named if self.questions[other].is_computed}
        return (named - computed).union(*(self.dependencies(other) for other in computed))

    @cached_property
    def _environment(self) -> jinja2.Environment:
        """The Jinja environment of Copier, without its extension `yield`, which only paths use."""
        options = dict(self.settings.get("_envops", {}))
        if undefined := options.get("undefined"):
            options["undefined"] = getattr(jinja2, undefined.removeprefix("jinja2."))
        options.setdefault("keep_trailing_newline", True)
        return jinja2.sandbox.SandboxedEnvironment(
            loader=jinja2.FileSystemLoader(self.root),
            extensions=["jinja2_ansible_filters.AnsibleCoreFiltersExtension"],
            **options,
        )

    def evaluate(self, text: Any, answers: Mapping[str, Any]) -> Any:
        """Render a text of copier.yml with the answers; return anything else as it is."""
        if not isinstance(text, str):
            return text
        try:
            return self._environment.from_string(text).render(answers)
        except jinja2.TemplateNotFound as error:
            raise TemplateFault(f"copier.yml includes {error.name}, which does not exist.") from error
        except jinja2.TemplateError as error:
            raise TemplateFault(f"copier.yml cannot be evaluated: {error}") from error

    def _default(self, question: Question, answers: Mapping[str, Any]) -> Any:
        if question.default is None:
            raise BadInput(f"{question.name}: an answer is required. Add -d {question.name}=…")
        return self.evaluate(question.default, answers)

    def _refuse_unknown(self, given: Iterable[str]) -> None:
        for name in given:
            if name not in self.questions:
                raise BadInput(
                    f"{name!r} is not a question{nearest(name, self.askable)}. "
                    f"Questions: {', '.join(self.askable)}."
                )
            if self.questions[name].is_computed:
                raise BadInput(
                    f"{name!r} is computed from the other answers and cannot be given. "
                    f"Questions: {', '.join(self.askable)}."
                )

    def check(self, name: str, answers: Mapping[str, Any], *, is_given: bool = True) -> None:
        """Check the answer of one question.

        Raises:
            BadInput: the answer is no choice, or the validator of the question refuses it.
        """
        answer, question = answers[name], self.questions[name]
        choices = self.choices(name, answers)
        if choices and answer not in choices:
            raise BadInput(
                f"{name}: {answer!r} is not a choice{self._given_that(name, answers)}"
                f"{nearest(answer, choices)}. Choices: {', '.join(map(str, choices))}.",
                question=name,
            )
        if complaint := self.evaluate(question.validator, answers).strip():
            if isinstance(answer, Mapping):
                raise BadInput(complaint, question=name)
            shown = answer if len(str(answer)) <= SHOWN else f"{answer[:SHOWN]}…"
            remedy = f"Given: {shown!r}" if is_given else f"Add -d {name}=…"
            raise BadInput(f"{name}: {complaint}. {remedy}", question=name)

    def _given_that(self, name: str, answers: Mapping[str, Any]) -> str:
        """Return the earlier answers that narrow a choice, such as ` with backend 'pgedge'`."""
        names = self.dependencies(name)
        facts = [f"{other} {answers[other]!r}" for other in self.askable if other in names]
        return f" with {' and '.join(facts)}" if facts else ""


# Maximum length of a refused answer in a message, in characters.
SHOWN = 60


def read_answers(file: Path) -> dict[str, Any]:
    """Read answers from a YAML file, such as the `.copier-answers.yml` of another project."""
    return {name: answer for name, answer in read_record(file).items() if name not in ORIGIN}


def read_record(file: Path) -> dict[str, Any]:
    """Read a file of answers with the lines that record the origin of a project.

    Raises:
        BadInput: the file cannot be read, or is no mapping in YAML.
    """
    try:
        # Not the loader in C, which may report the line after the error.
        content = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise BadInput(f"The answers file {file} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where else ""
        raise BadInput(
            f"The answers file {file} is not YAML{line}. Write lines like `backend: pgedge`."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise BadInput(f"The answers file {file} is not a mapping. Write lines like `backend: pgedge`.")
    return content


def nearest(word: Any, words: Iterable[Any]) -> str:
    """Return ` (did you mean 'x'?)` for the most similar of `words`, or an empty string."""
    found = difflib.get_close_matches(
        str(word).lower(), {str(other).lower(): other for other in words}, n=1, cutoff=0.5
    )
    meant = [other for other in words if found and str(other).lower() == found[0]]
    return f" (did you mean {meant[0]!r}?)" if meant else ""
