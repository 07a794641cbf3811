"""The life of a project with a declared domain, on a real cluster: from `up` to a column of one's own.

python tests/lives.py BACKEND SEED…    # random declarations; the name of a file takes the place of a seed
"""

# ruff: noqa: E501 - values side by side

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "generator"))

import random_domain  # noqa: E402
from random_domain import Declaration  # noqa: E402
from scaffold import domain, environment, matrix  # noqa: E402
from scaffold.questions import Questionnaire  # noqa: E402
from scaffold.render import render  # noqa: E402

# A value of each type in a JSONL file.
SAMPLES: dict[str, Any] = {
    "str": "x",
    "text": "it's {{ x }} %",
    "int": 1,
    "decimal": "0",
    "float": 0.5,
    "bool": True,
    "date": "2026-11-29",
    "time": "12:30",
    "datetime": "2026-11-29T12:30:00Z",
    "duration": "PT1H",
    "uuid": "6f0ad9b6-8a4c-5d0e-9a53-3c1f0e6b7a11",
    "json": {"a": 1},
    "bytes": "eA==",
}

# Prints the rows of each table, on the node on which `seed` writes.
COUNT = """
from sqlalchemy import func, select
from shop.models import Base
from shop.ops.topology import Topology
with Topology.open_database() as db:
    there = db.backend.route_load(db, "seeds", None)
    for table in Base.metadata.sorted_tables:
        print(table.name, there.read(lambda session: session.scalar(select(func.count()).select_from(table))), sep=": ")
"""


def held_by(profile: Mapping[str, Any], declaration: Declaration) -> Declaration:
    """Return the declaration without the words that a backend refuses."""
    refused = ([] if profile["unique_is_global"] else [" unique"]) + (
        [] if profile["constraints_are_deferrable"] else [" deferrable"]
    )
    pattern = "|".join(refused) or "(?!)"
    return {
        name: {field: re.sub(pattern, "", text) for field, text in fields.items()}
        for name, fields in declaration.items()
    }


def read(file: Path) -> Declaration:
    """Return the declaration of a file."""
    return {name: dict(fields) for name, fields in domain.read(file).entities.items()}


class Life:
    """A project and the interpreter that runs it."""

    def __init__(self, project: Path, python: str) -> None:
        """Take a rendered project."""
        self.project = project
        self.python = python

    def shop(self, *words: str) -> str:
        """Run the program of the project."""
        return self.run("-c", "from shop.ops.cli import app; app()", *words)

    def run(self, *words: str) -> str:
        """Run Python, and return what it prints.

        Raises:
            AssertionError: it exits with another code than 0.
        """
        done = subprocess.run(
            [self.python, *words],
            cwd=self.project,
            env={**os.environ, "PYTHONPATH": "src", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        return done.stdout + done.stderr

    def check(self) -> None:
        """Run the linter, the formatter and mypy, with the tools of this environment."""
        for words in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]):
            tool = shutil.which(
                words[0], path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            )
            python = ["--python-executable", self.python] if words[0] == "mypy" else []
            done = subprocess.run(
                [tool or words[0], *words[1:], *python],
                cwd=self.project,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]

    def test(self) -> None:
        """Run the tests that are the user's."""
        modules = sorted(str(path) for path in (self.project / "tests").glob("test_*.py"))
        self.run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *modules)

    def add_column(self) -> str:
        """Add a column to the last entity, as a user would; return its table."""
        models = self.project / "src" / "shop" / "models.py"
        text = models.read_text(encoding="utf-8")
        line = text[text.rindex("    __tablename__") :].partition("\n")[0]
        models.write_text(text.replace(line, f"{line}\n    by_hand: Mapped[int | None]"), encoding="utf-8")
        return line.split('"')[1]


def loadable(declaration: Declaration) -> tuple[str, dict[str, Any]]:
    """Return an entity that refers to nothing by need, and a row for it."""
    name, fields = next(
        (name, fields)
        for name, fields in declaration.items()
        if not any(re.fullmatch(r"->[^?]*", text) for text in fields.values())
    )
    row: dict[str, Any] = {}
    for field, text in fields.items():
        kind = re.match(r"\w+", text)
        if "<->" in text or "->" in text or "?" in text.partition("=")[0]:
            continue
        if text.startswith("["):
            row[field] = text[1:].partition(",")[0].partition("]")[0]
        elif ranged := re.match(r"from (\w+)", text):
            low = SAMPLES[ranged[1]]
            high = {
                "int": 2,
                "float": 1.5,
                "decimal": "1",
                "date": "2026-12-01",
                "datetime": "2026-12-01T00:00Z",
            }
            row |= {f"{field}_from": low, f"{field}_to": high[ranged[1]]}
        elif kind:
            row[field] = SAMPLES[kind[0]]
    # All may be optional, and a file names a column at least.
    return name, row or {"version": 1}


def live(life: Life, declaration: Declaration, *, types: bool = True) -> None:
    """Run the project through its life, from the first `up` to the tests after a column of one's own."""
    try:
        life.shop("up")
        life.shop("migrate")
        life.shop("verify")
        life.test()
        life.shop("seed", "--size", "7")
        seeded = life.run("-c", COUNT)
        life.shop("seed", "--size", "7")
        assert life.run("-c", COUNT) == seeded, "the second adds nothing"
        assert re.search(r": [1-9]", seeded)
        name, row = loadable(declaration)
        table = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
        rows = life.project / "rows.jsonl"
        rows.write_text(json.dumps(row) + "\n", encoding="utf-8")
        life.shop("load", table, "rows.jsonl")
        rows.unlink()
        life.add_column()
        written = life.shop("revision", "-m", "add a column by hand").splitlines()
        newest = "".join((life.project / line).read_text() for line in written if line.endswith(".py"))
        assert re.findall(r"op\.(\w+)\(", newest.partition("def downgrade")[0]) == ["add_column"], newest
        life.shop("migrate")
        assert "nothing to write" in life.shop("revision", "-m", "none")
        life.test()
        if types:
            life.check()
    finally:
        life.shop("destroy")


def main() -> None:
    """Run the lives of the declarations that the command line names."""
    backend, *names = sys.argv[1:]
    profile = Questionnaire(ROOT).profiles()[backend]
    for name in names:
        declaration = read(Path(name)) if name.endswith(".yml") else random_domain.domain(int(name), profile)
        declaration = held_by(profile, declaration)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            Path(folder).chmod(0o711)
            project = Path(folder) / "shop"
            render(ROOT, project, {"project_name": "shop", "backend": backend, "domain": declaration})
            python = os.environ.get("DOMAIN_PYTHON") or matrix.interpreter(project, Path(folder) / ".venv")
            assert environment.requirements(project)
            try:
                live(Life(project, python), declaration)
            except AssertionError as error:
                print(f"{backend} {name}: FAILED\n{declaration}\n{error}", flush=True)
            else:
                print(f"{backend} {name}: passed", flush=True)


if __name__ == "__main__":
    main()
