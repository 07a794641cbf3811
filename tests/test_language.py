"""Every text of the repository and of every rendered project keeps to the rules of CONTRIBUTING.md."""

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import ROOT, VARIANTS, files
from language import LONGEST, Complaint, complaints

FOLDERS = (".github", "benchmarks", "docs", "generator", "hooks", "template", "tests")
# Texts by others, and data.
EXEMPT = ("LICENSE", ".copier-answers.yml", "template/licences/", "benchmarks/report.json")


def sources() -> list[str]:
    """Return the texts of this repository, by their paths."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    names = sorted(str(path.relative_to(ROOT)) for path in found if ".ruff_cache" not in path.parts)
    return [name for name in names if not name.startswith(EXEMPT)]


@pytest.mark.parametrize("name", sources())
def test_a_source_keeps_to_the_language(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    found = [f"{name}:{complaint}" for complaint in complaints(name, text)]
    assert not found, "\n".join(found)


@pytest.fixture(scope="session")
def read() -> set[bytes]:
    """Return the texts that were read already; at first, the sources."""
    return {(ROOT / name).read_bytes() for name in sources()}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_project_keeps_to_the_language(
    name: str, rendered: Callable[[str], Path], read: set[bytes]
) -> None:
    found = []
    for file, data in files(rendered(name)).items():
        if data not in read and not file.startswith(EXEMPT):
            read.add(data)
            found += [f"{name}/{file}:{complaint}" for complaint in complaints(file, data.decode())]
    assert not found, "\n".join(found)


# The detector fires, and only where it should


def rules(name: str, text: str) -> list[str]:
    """Return the rules that a text breaks."""
    return [complaint.rule for complaint in complaints(name, text)]


@pytest.mark.parametrize(
    "docstring",
    [
        "What a node stores.",
        "Whether the node is up.",
        "Of the nodes, those that are up.",
        "That the node is up.",
        "Return the nodes. What is down is left out.",
        "Return the nodes.\n\n    Args:\n        all: Whether those that are down count, too.\n    ",
        "Return the nodes.\n\n    Returns:\n        How many there are.\n    ",
    ],
)
def test_a_sentence_without_a_head_is_found(docstring: str) -> None:
    assert "headless sentence" in rules("x.py", f'def f():\n    """{docstring}"""\n')


@pytest.mark.parametrize("docstring", ["Return what a node stores.", "Raise an error. Is it down? Why?"])
def test_a_clause_inside_a_sentence_and_a_question_are_accepted(docstring: str) -> None:
    assert rules("x.py", f'def f():\n    """{docstring}"""\n') == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.py", "x = 1  # what is left\n"),
        ("x.py", "# A reason.\n# What is left.\nx = 1\n"),
        ("x.sh", "# Who may read it\n"),
        ("x.sql", "-- How a row is found.\n"),
        ("x.md", "Rows are kept.\nWhat is left is deleted.\n"),
        ("x.md", "- Rows are kept.\n- What is left is deleted.\n"),
        ("x.md", "| rows | what is left is deleted |\n"),
        ("template/x.py.jinja", "{# What is left is deleted. #}\n"),
    ],
)
def test_comments_and_documents_are_read_too(name: str, text: str) -> None:
    assert rules(name, text) == ["headless sentence"]


def test_a_complaint_names_the_line_and_the_sentence() -> None:
    text = '"""A module."""\n\n\ndef f():\n    """Return rows.\n\n    What is left is deleted.\n    """\n'
    assert complaints("x.py", text) == [Complaint(7, "headless sentence", "What is left is deleted.")]


def test_a_text_for_the_terminal_is_read_too() -> None:
    assert rules("x.py", 'raise ValueError("Where the project lies.")\n') == ["headless text"]


@pytest.mark.parametrize("docstring", ["The rows.", "Returns rows.", "Name of a row.", "`rows` of it."])
def test_a_function_opens_with_a_verb(docstring: str) -> None:
    assert rules("x.py", f'def f():\n    """{docstring}"""\n') == ["no verb first"]


def test_a_property_and_a_class_may_open_with_a_noun() -> None:
    text = 'class Row:\n    """A row."""\n\n    @property\n    def key(self):\n        """The key."""\n'
    assert rules("x.py", text) == []


def test_a_constant_opens_with_a_noun() -> None:
    assert rules("x.py", 'LIMIT = 1\n"""For one chunk, in bytes."""\n') == ["constant without a noun"]
    assert rules("x.py", 'LIMIT = 1\n"""Size limit of one chunk, in bytes."""\n') == []


@pytest.mark.parametrize("name", ["x.py", "x.md", "x.sh", "compose.yaml"])
def test_a_long_line_is_found(name: str) -> None:
    line = "# " + "x" * (LONGEST - 2)
    assert rules(name, line + "\n") == []
    assert rules(name, line + "x\n") == [f"{LONGEST + 1} characters"]


def test_a_row_of_a_table_and_a_url_may_be_long() -> None:
    assert rules("x.md", f"| {'x' * LONGEST} |\n\nSee <https://example.org/{'x' * LONGEST}>.\n") == []
