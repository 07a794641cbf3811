"""Shared by the tests: the variants, each rendered once per run, and ways to run the command line."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from reach import Reach
from scaffold import environment, matrix
from scaffold.questions import Questionnaire
from scaffold.render import render

# A shell without job control starts background jobs with SIGINT ignored, and `nohup` ignores SIGHUP. Children
# inherit that, and tests of interruptions would fail.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).parents[1]
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", ".demo", ".*_cache", "__pycache__", "build", "dist")

# Free memory in bytes from which on clusters are kept in memory; those of a few projects at once need less.
ROOM = 4 * 2**30

QUESTIONNAIRE = Questionnaire(ROOT)
VARIANTS = {variant.name: variant for variant in matrix.variants(QUESTIONNAIRE)}
DEFAULT = next(iter(VARIANTS))
BACKEND = VARIANTS[DEFAULT].answers["backend"]

# Free text that breaks YAML, TOML, SQL, a shell, Python or Jinja unless it is escaped.
HOSTILE = """It's "quoted" \\ and {{ braced }} {% raw %} {# no comment #} $(touch pwned) `id` ${HOME} %s {0}
second line: 'yes' # no comment
\ttab; '); DROP TABLE account; -- \"\"\" ''' </script> [tool.ruff] - ünï∂ : 日本 🎉 \\N{BELL} \\u0041 \\"""
EDGES = {
    variant.name: variant
    for variant in (
        matrix.Variant(
            "hostile-text",
            {
                "project_name": "shop",
                "description": HOSTILE,
                "author_name": HOSTILE,
                "author_email": "a.b+c@d-e.example",
            },
        ),
        matrix.Variant(
            "long-names",
            {
                "project_name": "a" * 40,
                "package_name": "b" * 40,
                "description": "word " * 60,
                "author_name": "x" * 200,
                "asyncio": True,
                "keys": "uuid",
            },
        ),
    )
}
EVERY = VARIANTS | EDGES

# For each variant the number of its modules that run with it, why these do, and their run.
RUNS = pytest.StashKey[list[tuple[str, "Future[matrix.Outcome] | None"]]]()


@pytest.fixture(scope="session", autouse=True)
def _own_git_configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Replace the user's git configuration, so that no name, hook or signing key takes part in a test."""
    configuration = tmp_path_factory.mktemp("git") / "config"
    configuration.write_text("[user]\nname = Ada\nemail = ada@example.org\n[init]\ndefaultBranch = trunk\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", str(configuration))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        for name in [
            name for name in os.environ if name.startswith("GIT_") and not name.startswith("GIT_CONFIG")
        ]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _clusters_in_memory() -> Iterator[None]:
    """Keep clusters in memory if there is room and the user is root.

    Thousands of files come and go, and a disk would determine the time: ext4 without a journal searches the
    files deleted in the last minutes for each new file.
    """
    memory = Path("/dev/shm")  # noqa: S108
    if os.geteuid() or not memory.is_dir() or shutil.disk_usage(memory).free < ROOM:
        yield
        return
    with (
        tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        # The servers run as another user.
        Path(folder).chmod(0o711)
        patch.setenv("PG_RUN_DIR", folder)
        yield


@pytest.fixture(scope="session")
def renders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render every variant into a folder of its name; return their parent."""
    folder = tmp_path_factory.mktemp("renders")
    with ProcessPoolExecutor() as pool:
        made = [pool.submit(render, ROOT, folder / name, variant.answers) for name, variant in EVERY.items()]
        for one in made:
            one.result()
    return folder


@pytest.fixture(scope="session")
def rendered(renders: Path) -> Callable[[str], Path]:
    """Return a function from the name of a variant to its project, which tests must not change."""
    return lambda name: renders / name


@pytest.fixture(scope="session")
def interpreter(renders: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function from the name of a variant to an interpreter that has its requirements.

    It is the running one or that of an environment which is created once for all other variants.
    """
    shared = tmp_path_factory.mktemp("environment") / ".venv"
    found: dict[tuple[str, ...], str] = {}

    def find(name: str) -> str:
        wanted = tuple(environment.requirements(renders / name))
        if wanted not in found:
            found[wanted] = matrix.interpreter(renders / name, shared)
        return found[wanted]

    return find


@pytest.fixture(scope="session")
def runs(
    request: pytest.FixtureRequest,
    renders: Path,
    interpreter: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Mapping[str, set[Future[matrix.Outcome]]]]:
    """Start the tests of every variant; yield the runs by variant. A module that variants share runs once."""
    folder = tmp_path_factory.mktemp("run")
    # A copy, because tests change the environment variables of this process.
    environ = dict(os.environ)
    first: dict[str, str] = {}
    needed: dict[str, set[str]] = {}
    modules: dict[str, list[str]] = {}
    apart: dict[str, bool] = {}
    reaches: dict[str, Reach] = {}
    reasons: dict[str, str] = {}
    # The longest names first: a variant that has only other names shares that run.
    for name in sorted(EVERY, key=lambda name: -len(names_of(name)[0])):
        apart[name] = not environment.is_satisfied(environment.requirements(renders / name))
        reach = Reach(files(renders / name), apart=apart[name], names=names_of(name))
        keys = {module: reach.of(module) for module in reach.test_modules}
        modules[name] = [module for module, key in keys.items() if first.setdefault(key, name) == name]
        needed[name] = {first[key] for key in keys.values()}
        unlike = min((set(reach.unlike(other)) for other in reaches.values()), key=len, default=set())
        parts = ", ".join(sorted(unlike)[:8]) + (" and more" if len(unlike) > 8 else "") or "nothing"
        reasons[name] = f"{name}, {len(modules[name])} of {len(keys)} modules, because of {parts}"
        reaches[name] = reach
    running: set[matrix.Tests] = set()
    with ThreadPoolExecutor(matrix.AT_ONCE) as pool:
        try:
            # The longest ones first, so that none runs alone at the end; but last those that need another
            # environment, so that nothing waits for its installation.
            started = {
                name: pool.submit(
                    matrix.run_tests,
                    shutil.copytree(renders / name, folder / name),
                    interpreter(name),
                    running,
                    modules=modules[name],
                    environ=environ,
                )
                for name in sorted(EVERY, key=lambda name: (apart[name], -len(modules[name])))
                if modules[name]
            }
            request.config.stash[RUNS] = [(reasons[name], started.get(name)) for name in reasons]
            yield {name: {started[other] for other in needed[name]} for name in EVERY}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            matrix.stop(running)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many modules each variant ran, for how long, and what sets it apart from the nearest one."""
    if found := config.stash.get(RUNS, []):
        terminalreporter.section("runs of the projects' own tests")
    for reason, run in found:
        is_over = run is not None and run.done() and not run.cancelled() and run.exception() is None
        took = f"{run.result().seconds:4.0f} s" if run and is_over else "   - s"
        terminalreporter.write_line(f"{took}  {reason}")


@pytest.fixture(scope="session", autouse=True)
def _runs_begin_with_the_first_test(request: pytest.FixtureRequest) -> None:
    if any("runs" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("runs")


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy this work tree to a folder outside any repository."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("pristine") / "scaffold", ignore=NOT_COPIED)


@pytest.fixture
def checkout(pristine: Path, tmp_path: Path) -> Path:
    """Copy this work tree to a repository of one commit, which the test may change."""
    folder = shutil.copytree(pristine, tmp_path / "checkout")
    git(folder, "init", "--quiet")
    commit(folder, "everything")
    return folder


class Scaffold:
    """The command line, run as a user would, in a folder that is empty at first."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __call__(
        self,
        *arguments: str | bytes | Path,
        root: Path = ROOT,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line that belongs to the template at `root`."""
        return subprocess.run(
            [sys.executable, "-m", "scaffold", *arguments],
            cwd=cwd or self.place,
            # A lock that a test does not ask for takes no network, and fails at once.
            env={
                **os.environ,
                "PYTHONPATH": str(root / "generator"),
                "COLUMNS": "200",
                "UV_OFFLINE": "1",
                **(env or {}),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def scaffold(tmp_path: Path) -> Scaffold:
    place = tmp_path / "place"
    place.mkdir()
    return Scaffold(place)


def git(folder: Path, *arguments: str) -> str:
    """Run git, which must succeed, and return its output."""
    return subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def commit(folder: Path, message: str, *, tag: str | None = None) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    if tag:
        git(folder, "tag", tag)


def files(project: Path) -> dict[str, bytes]:
    """Return the files of a project by path, without repositories and the caches of tools."""
    left_behind = {".git", ".mypy_cache", ".pytest_cache", ".ruff_cache", "__pycache__", ".venv", ".cluster"}
    return {
        str(path.relative_to(project)): path.read_bytes()
        for path in sorted(project.rglob("*"))
        if path.is_file() and not left_behind & set(path.parts)
    }


def names_of(variant: str) -> tuple[str, str]:
    """Return the names of the package and the project of a variant."""
    answers = QUESTIONNAIRE.resolve(EVERY[variant].answers)
    return answers["package_name"], answers["project_name"]


def names(folder: Path) -> list[str]:
    """Return the sorted names of a folder's entries."""
    return sorted(path.name for path in folder.iterdir())


def digest(project: Path, *endings: str) -> str:
    """Return a hash of the files with these endings."""
    content = repr([(name, data) for name, data in files(project).items() if name.endswith(endings)])
    return hashlib.sha256(content.encode()).hexdigest()
