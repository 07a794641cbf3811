"""Every variant is a tidy project: linted, typed, free of other backends, and green on its own servers."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path

import pytest
import yaml

from conftest import BACKEND, DEFAULT, EVERY, HOSTILE, QUESTIONNAIRE, ROOT, digest, files, names_of
from reach import Reach
from scaffold import matrix
from scaffold.render import render

Rendered = Callable[[str], Path]
Interpreter = Callable[[str], str]
Runs = Mapping[str, set[Future[matrix.Outcome]]]

# Not "{{" alone, the brace of an f-string, nor "${{", an expression of GitHub.
LEFTOVER = re.compile(r"(?<!\$)\{\{-? \w|\{%|\{# ")
EMPTY_ON_PURPOSE = {"py.typed", "__init__.py"}

# Every project holds these files,
FILES = """
    .copier-answers.yml
    .dockerignore
    .env.example
    .gitattributes
    .github/dependabot.yml
    .gitignore
    LICENSE
    Makefile
    README.md
    alembic.ini
    compose.yaml
    pyproject.toml
    src/shop/__init__.py
    src/shop/__main__.py
    src/shop/backend_settings.py
    src/shop/bank.py
    src/shop/db/__init__.py
    src/shop/db/backend.py
    src/shop/db/base.py
    src/shop/db/bulk/__init__.py
    src/shop/db/bulk/_chunks.py
    src/shop/db/bulk/_copy.py
    src/shop/db/bulk/_sequences.py
    src/shop/db/bulk/_stored.py
    src/shop/db/database.py
    src/shop/db/engines.py
    src/shop/db/errors.py
    src/shop/db/keys.py
    src/shop/db/objects.py
    src/shop/db/reading.py
    src/shop/db/retry.py
    src/shop/db/routing.py
    src/shop/db/session.py
    src/shop/limits.py
    src/shop/migrations/env.py
    src/shop/migrations/script.py.mako
    src/shop/migrations/versions/0001_ledger.py
    src/shop/migrations/versions/0002_bulk_load.py
    src/shop/models.py
    src/shop/ops/__init__.py
    src/shop/ops/autogenerate.py
    src/shop/ops/backfill.py
    src/shop/ops/base.py
    src/shop/ops/catalogue.sql
    src/shop/ops/cli.py
    src/shop/ops/cluster/__init__.py
    src/shop/ops/cluster/binaries.py
    src/shop/ops/cluster/compose.py
    src/shop/ops/cluster/container_cluster.py
    src/shop/ops/cluster/drivers.py
    src/shop/ops/cluster/embedded.py
    src/shop/ops/cluster/nodes.py
    src/shop/ops/cluster/process.py
    src/shop/ops/cluster/process_cluster.py
    src/shop/ops/cluster/server.py
    src/shop/ops/connections.py
    src/shop/ops/console.py
    src/shop/ops/effects.py
    src/shop/ops/expand_contract.py
    src/shop/ops/file_reader.py
    src/shop/ops/glance.py
    src/shop/ops/indexes.py
    src/shop/ops/migrate.py
    src/shop/ops/plan.py
    src/shop/ops/privileges.py
    src/shop/ops/privileges.sql
    src/shop/ops/topology.py
    src/shop/ops/verify/__init__.py
    src/shop/ops/verify/check.py
    src/shop/ops/verify/checks/__init__.py
    src/shop/ops/verify/checks/concurrency.py
    src/shop/ops/verify/checks/nodes.py
    src/shop/ops/verify/checks/privileges.py
    src/shop/ops/verify/history.py
    src/shop/ops/verify/isolation.py
    src/shop/ops/verify/probes.py
    src/shop/ops/verify/look.py
    src/shop/ops/verify/page.css
    src/shop/ops/verify/page.py
    src/shop/ops/verify/report.py
    src/shop/ops/verify/scratch.py
    src/shop/ops/verify/watch.py
    src/shop/ops/version_commands.py
    src/shop/ops/versions.py
    src/shop/py.typed
    src/shop/seeds.py
    src/shop/settings.py
    src/shop/urls.py
    tests/__init__.py
    tests/conftest.py
    tests/runtime/__init__.py
    tests/runtime/bank.py
    tests/runtime/browser.py
    tests/runtime/bulk/__init__.py
    tests/runtime/bulk/conftest.py
    tests/runtime/bulk/test_files.py
    tests/runtime/bulk/test_matrix.py
    tests/runtime/bulk/test_resume.py
    tests/runtime/bulk/test_rows.py
    tests/runtime/bulk/test_values.py
    tests/runtime/commit_proxy.py
    tests/runtime/conftest.py
    tests/runtime/fault.py
    tests/runtime/models.py
    tests/runtime/processes.py
    tests/runtime/project/__init__.py
    tests/runtime/project/alembic.ini
    tests/runtime/project/migrations/__init__.py
    tests/runtime/project/migrations/env.py
    tests/runtime/project/migrations/script.py.mako
    tests/runtime/project/migrations/versions/0001_ledger.py
    tests/runtime/project/migrations/versions/0002_bulk_load.py
    tests/runtime/project/migrations/versions/__init__.py
    tests/runtime/test_autogenerate.py
    tests/runtime/test_backend.py
    tests/runtime/test_cli.py
    tests/runtime/test_cluster.py
    tests/runtime/test_database.py
    tests/runtime/test_dataclasses.py
    tests/runtime/test_faults.py
    tests/runtime/test_isolation.py
    tests/runtime/test_keys.py
    tests/runtime/test_migrate.py
    tests/runtime/test_objects.py
    tests/runtime/test_page.py
    tests/runtime/test_privileges.py
    tests/runtime/test_reading.py
    tests/runtime/test_retry.py
    tests/runtime/test_routing.py
    tests/runtime/test_settings.py
    tests/runtime/test_urls.py
    tests/runtime/test_verify.py
    tests/test_bank.py
    tests/test_migrations.py
"""
# those that the profile of its backend names, each key with their folder here and in the pack,
PLACES = {
    "app_files": ("src/shop", "app"),
    "app_test_files": ("tests", "app"),
    "bare_files": ("src/shop", "bare"),
    "bare_test_files": ("tests", "bare"),
    "db_files": ("src/shop/db", "db"),
    "ops_files": ("src/shop/ops", "ops"),
    "check_files": ("src/shop/ops/verify/checks", "checks"),
    "embedded_files": ("src/shop/ops/cluster", "embedded"),
    "cluster_files": ("cluster", "cluster"),
    "test_files": ("tests/runtime", "tests"),
}
AIO_PLACES = {"aio_files": PLACES["db_files"], "aio_test_files": PLACES["test_files"]}
# those of each of its histories of migrations,
OF_HISTORY = """
    src/shop/migrations/{0}/0001_{0}.py
    tests/runtime/project/migrations/{0}/__init__.py
    tests/runtime/project/migrations/{0}/{0}_0001.py
"""
# and those of sequences, of functions that a revision creates, and of asyncio.
OF_FUNCTIONS = "src/shop/migrations/snowflake.sql tests/runtime/project/migrations/snowflake.sql"
OF_ASYNCIO = "src/shop/db/aio.py tests/runtime/test_aio.py"


def run(*command: str | Path, cwd: Path) -> None:
    """Run a tool, which must succeed; its output is the message of the failure."""
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


def texts(project: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every file."""
    for name, data in files(project).items():
        yield name, data.decode()


# All renders in one go


def test_ruff_finds_nothing(renders: Path) -> None:
    run(sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", ".", cwd=renders)


def test_ruff_would_format_nothing(renders: Path) -> None:
    run(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", ".", cwd=renders)


def test_every_module_compiles(renders: Path) -> None:
    for file in renders.rglob("*.py"):
        compile(file.read_bytes(), str(file), "exec", dont_inherit=True)


def test_every_yaml_and_toml_file_can_be_read(renders: Path) -> None:
    for project in renders.iterdir():
        for name, text in texts(project):
            if name.endswith((".yml", ".yaml")):
                assert list(yaml.safe_load_all(text)), f"{project.name}/{name}"
            if name.endswith(".toml"):
                assert tomllib.loads(text), f"{project.name}/{name}"


def test_no_jinja_is_left_over(renders: Path) -> None:
    found = [
        f"{project.name}/{name}: {match.group()}"
        for project in renders.iterdir()
        # Its description has braces.
        if project.name != "hostile-text"
        for name, text in texts(project)
        if (match := LEFTOVER.search(name) or LEFTOVER.search(text))
    ]
    assert found == []


def test_no_line_ends_in_blanks_and_every_file_in_one_newline(renders: Path) -> None:
    untidy = [
        f"{project.name}/{name}"
        for project in renders.iterdir()
        for name, text in texts(project)
        if re.search(r"[ \t\r]$", text, re.MULTILINE) or (text and not re.search(r"[^\n]\n\Z", text))
    ]
    assert untidy == []


def test_no_file_is_empty_without_a_purpose(renders: Path) -> None:
    empty = [file for file in renders.rglob("*") if file.is_file() and not file.read_bytes().strip()]
    assert {file.name for file in empty} <= EMPTY_ON_PURPOSE


def test_no_folder_is_empty(renders: Path) -> None:
    assert [folder for folder in renders.rglob("*") if folder.is_dir() and not any(folder.iterdir())] == []


@pytest.mark.parametrize("backend", QUESTIONNAIRE.choices("backend", {}))
def test_a_profile_names_every_file_of_its_pack(backend: str) -> None:
    """A file that the profile does not name reaches no project, so a test forgotten there would never run."""
    pack, profile = ROOT / "template/backends" / backend, QUESTIONNAIRE.profiles()[backend]
    named = {"checks/__init__.py", *(f"migrations/{history}.py" for history in profile["histories"])}
    for key, (_, folder) in (PLACES | AIO_PLACES).items():
        named |= {f"{folder}/{file}" for file in profile[key]}
    folders = {"migrations", *(folder for _, folder in PLACES.values())}
    found = {file.removesuffix(".jinja") for file in files(pack) if file.partition("/")[0] in folders}
    assert found - named == set()


@pytest.mark.parametrize("backend", QUESTIONNAIRE.choices("backend", {}))
def test_every_backend_has_its_words(backend: str) -> None:
    assert QUESTIONNAIRE.profiles()[backend]["words"]


def test_no_project_speaks_of_another_backend(rendered: Rendered) -> None:
    found = []
    profiles = QUESTIONNAIRE.profiles()
    for name, variant in EVERY.items():
        own = variant.answers.get("backend", EVERY[DEFAULT].answers["backend"])
        others = [word for backend, other in profiles.items() if backend != own for word in other["words"]]
        pattern = re.compile("|".join(others), re.IGNORECASE)
        found += [
            f"{name}/{file}: {match.group()}"
            for file, text in texts(rendered(name))
            if (match := pattern.search(file) or pattern.search(text))
        ]
    assert found == []


WARNED = """
import pytest, warnings

@pytest.mark.parametrize("module", ["shop.db.database", "tests.test_it", "typer.main", "shopping.cart"])
def test_old(module):
    warnings.warn_explicit("old", DeprecationWarning, "it.py", 1, module=module)

def test_leak():
    warnings.warn_explicit("leak", ResourceWarning, "it.py", 1, module="typer.main")
"""


def test_a_deprecation_fails_a_test_only_where_the_project_is_what_is_old(
    rendered: Rendered, tmp_path: Path
) -> None:
    shutil.copy(rendered(DEFAULT) / "pyproject.toml", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_it.py").write_text(WARNED)
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    failed = re.findall(r"^FAILED tests/test_it.py::(\S+)", told, re.MULTILINE)
    assert failed == ["test_old[shop.db.database]", "test_old[tests.test_it]", "test_leak"], told


@pytest.mark.parametrize("backend", QUESTIONNAIRE.choices("backend", {}))
def test_a_project_has_no_name_but_its_own(backend: str, tmp_path: Path) -> None:
    """All variants are named shop, so a text with that name in it is noticed only here."""
    names = {"project_name": "order-2", "package_name": "user_accounts"}
    render(ROOT, tmp_path / "project", {**names, "backend": backend, "asyncio": True})
    assert [name for name, text in texts(tmp_path / "project") if "shop" in f"{name} {text}".lower()] == []


# One by one


@pytest.mark.parametrize("name", EVERY)
def test_a_project_holds_its_files_and_no_others(name: str, rendered: Rendered) -> None:
    answers = QUESTIONNAIRE.resolve(EVERY[name].answers)
    profile = QUESTIONNAIRE.profiles()[answers["backend"]]
    places = PLACES | (AIO_PLACES if answers["asyncio"] else {})
    parts = [FILES, OF_ASYNCIO if answers["asyncio"] else ""]
    other = "bare_" if answers["design"]["kind"] == "ledger" else "app_"
    places = {key: place for key, place in places.items() if not key.startswith(other)}
    parts += [f"{folder}/{file}" for key, (folder, _) in places.items() for file in profile[key]]
    parts += [OF_HISTORY.format(history) for history in profile["histories"]]
    if answers["key"]["sequences"]:
        parts += [OF_FUNCTIONS if profile["creates_snowflake"] else ""]
    expected = " ".join(parts).split()
    package = f"src/{answers['package_name']}/"
    assert sorted(files(rendered(name))) == sorted(file.replace("src/shop/", package) for file in expected)


@pytest.fixture(scope="session")
def judged() -> dict[tuple[str, ...], str]:
    """Return the variants whose code mypy has accepted, by a hash of the code; a licence changes none."""
    return {}


@pytest.mark.parametrize("name", EVERY)
def test_mypy_finds_nothing_in_strict_mode(
    name: str,
    rendered: Rendered,
    interpreter: Interpreter,
    judged: dict[tuple[str, ...], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    project = rendered(name)
    settings = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["mypy"]
    assert settings["strict"] is True
    code = (digest(project, ".py"), json.dumps(settings))
    if code not in judged:
        python = interpreter(name)
        cache = tmp_path_factory.getbasetemp() / ("mypy" if python == sys.executable else "mypy-other")
        run(python, "-m", "mypy", "--cache-dir", cache, cwd=project)
        judged[code] = name


def has_compose() -> bool:
    version = ["docker", "compose", "version"]
    return (
        bool(shutil.which("docker"))
        and subprocess.run(version, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.parametrize("name", EVERY)
def test_docker_accepts_the_compose_file(name: str, rendered: Rendered, tmp_path: Path) -> None:
    if not has_compose():
        pytest.skip("docker compose is not here")
    # A copy, because the file refers to secrets that `up` creates.
    project = shutil.copytree(rendered(name), tmp_path / "shop")
    run("docker", "compose", "config", "--quiet", cwd=project)


# Text that breaks things


def folded(text: str) -> str:
    """Fold white space, which a field of one line may do."""
    return " ".join(text.split())


def test_hostile_text_is_carried_through_toml(rendered: Rendered) -> None:
    declared = tomllib.loads((rendered("hostile-text") / "pyproject.toml").read_text())["project"]
    assert folded(declared["description"]) == folded(HOSTILE)
    assert folded(declared["authors"][0]["name"]) == folded(HOSTILE)


def test_hostile_text_is_carried_through_yaml(rendered: Rendered) -> None:
    answers = yaml.safe_load((rendered("hostile-text") / ".copier-answers.yml").read_text())
    assert answers["description"] == HOSTILE
    assert answers["author_name"] == HOSTILE


def test_hostile_text_runs_nothing(rendered: Rendered) -> None:
    assert not list(rendered("hostile-text").rglob("pwned"))


@pytest.mark.parametrize("name", EVERY)
def test_a_project_can_be_built(name: str, rendered: Rendered) -> None:
    """The build backend of the project accepts every field."""
    project = rendered(name)
    result = subprocess.run(
        [sys.executable, "-m", "hatchling", "metadata"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    metadata = json.loads(result.stdout)
    answers = QUESTIONNAIRE.resolve(EVERY[name].answers)
    assert metadata["name"] == answers["project_name"].replace("_", "-")
    assert metadata["requires-python"] == f">={answers['python_version']}"


# The user's part

ANOTHER_DOMAIN = """
from sqlalchemy import BigInteger
from sqlalchemy.orm import DeclarativeBase, Mapped

from .db import PrimaryKeyMixin


class Base(DeclarativeBase):
    type_annotation_map = {int: BigInteger}


class Book(PrimaryKeyMixin, Base):
    __tablename__ = "book"

    title: Mapped[str]
"""
OTHER_DATABASES = """
from .db.databases import Databases, DatabaseSpec
from .db.outbox import Receivers
from .db.table_sync import TableSync
from .models import Base
from .settings import Settings

DATABASES = (DatabaseSpec(name="library", models=Base, node="n1"),)
DECISION_LOG = "library"
TABLE_SYNCS: tuple[TableSync, ...] = ()
OUTBOXES = ()
RECEIVERS: Receivers = {}


def open_databases() -> Databases:
    return Databases.from_settings(DATABASES, Settings(), decision_log=DECISION_LOG)
"""
ANOTHER_APPLICATION = {
    "models.py": ANOTHER_DOMAIN,
    "databases.py": OTHER_DATABASES,
    "seeds.py": "from typing import Any\n\nADDERS: dict[str, Any] = {}\n",
}
"""Modules that the runtime imports; a project may have fewer."""


def imported(code: str) -> Iterator[str]:
    """Yield the dotted names that a module imports, other than relative to itself."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names))


@pytest.mark.parametrize("backend", QUESTIONNAIRE.choices("backend", {}))
def test_the_tests_of_the_runtime_hold_with_any_models(
    backend: str,
    rendered: Rendered,
    interpreter: Interpreter,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Nothing in tests/runtime imports the sample domain, so it is type-checked and collected without it."""
    name = next(
        name
        for name, variant in EVERY.items()
        if QUESTIONNAIRE.resolve(variant.answers)["backend"] == backend and variant.answers.get("asyncio")
    )
    project = shutil.copytree(rendered(name), tmp_path / "shop")
    profile = QUESTIONNAIRE.profiles()[backend]
    application = ["models.py", "bank.py", "seeds.py", *profile["app_files"]]
    domain = {f"shop.{Path(file).stem}" for file in application}
    importing = {
        file
        for file, text in texts(project / "tests/runtime")
        if file.endswith(".py") and not domain.isdisjoint(imported(text))
    }
    assert importing == set()
    for file in application:
        module = project / "src/shop" / file
        module.unlink()
        if file in ANOTHER_APPLICATION:
            module.write_text(ANOTHER_APPLICATION[file])
    for path in [*(project / "tests").iterdir(), *(project / "src/shop/migrations").iterdir()]:
        if path.is_dir() and path.name != "runtime":
            shutil.rmtree(path)
        elif path.name.startswith("test_"):
            path.unlink()
    python = interpreter(name)
    cache = tmp_path_factory.getbasetemp() / ("mypy" if python == sys.executable else "mypy-other")
    run(python, "-m", "mypy", "--cache-dir", cache, cwd=project)
    run(python, "-m", "pytest", "-q", "--collect-only", "-o", "pythonpath=src", "tests/runtime", cwd=project)


# The projects' own tests, last: they have been running since the first test of this run


@pytest.mark.parametrize("name", EVERY)
def test_a_project_passes_its_own_tests(name: str, runs: Runs) -> None:
    outcomes = [run.result() for run in runs[name]]
    for outcome in outcomes:
        assert outcome.status != "FAIL", outcome.log.read_text(errors="replace")[-6000:]
    if skipped := [outcome.summary for outcome in outcomes if outcome.status == "SKIP"]:
        pytest.skip(skipped[0])


def test_a_project_with_other_names_shares_the_run_of_the_longest(rendered: Rendered, runs: Runs) -> None:
    short = f"{BACKEND}-uuid-asyncio"
    found = [Reach(files(rendered(name)), names=names_of(name)) for name in ("long-names", short)]
    longest, shortest = ({module: reach.of(module) for module in reach.test_modules} for reach in found)
    assert longest == shortest
    assert runs[short] == runs["long-names"]
    assert [run.result().variant for run in runs[short]] == ["long-names"]


def test_a_module_is_run_again_for_whatever_it_can_reach(rendered: Rendered, tmp_path: Path) -> None:
    project = shutil.copytree(rendered(DEFAULT), tmp_path / "shop")

    def keys() -> dict[str, str]:
        reach = Reach(files(project))
        return {module: reach.of(module) for module in reach.test_modules}

    def changed(file: str) -> set[str]:
        before = keys()
        path = project / file
        path.write_text(path.read_text() + "# changed\n")
        after = keys()
        return {module for module in before if before[module] != after[module]}

    every = set(keys())
    for file in ("README.md", "compose.yaml", "src/shop/ops/cluster/compose.py"):
        assert changed(file) == set(), file
    data = [name for name in files(project) if re.fullmatch(r"src/.*\.sql", name)]
    revisions = [name for name in files(project) if re.search(r"migrations/(env|versions/\d\w+)\.py$", name)]
    for file in ("src/shop/db/retry.py", "tests/conftest.py", "tests/runtime/models.py", *data, *revisions):
        assert changed(file) == every, file
    assert changed("tests/runtime/commit_proxy.py") == {
        "tests/runtime/bulk/test_resume.py",
        "tests/test_bank.py",
    }
    assert changed("src/shop/ops/verify/report.py") == {
        "tests/runtime/bulk/test_files.py",
        "tests/runtime/test_cli.py",
        "tests/runtime/test_cluster.py",
        "tests/runtime/test_isolation.py",
        "tests/runtime/test_page.py",
        "tests/runtime/test_plan.py",
        "tests/runtime/test_repair.py",
        "tests/runtime/test_rows.py",
        "tests/runtime/test_verify.py",
    }
