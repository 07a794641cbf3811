"""Command line: parse the arguments, call the other modules, print the result.

Each command imports the modules that it needs: Copier and Jinja take longer to import than `scaffold --help`
takes to run.
"""

import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from scaffold import __version__
from scaffold.errors import BadInput, ScaffoldError

if TYPE_CHECKING:
    from rich.console import Console

    from scaffold.domain import Declaration
    from scaffold.questions import Questionnaire

ENDING = (signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
# Targets of a generated project's Makefile, in the order of a first visit.
NEXT_STEPS = ("make up", "make verify", "make test")

app = typer.Typer(
    help="Generate an application on distributed SQL that works the minute it is generated.",
    no_args_is_help=True,
    # Plain help, because colours double the time that `--help` takes.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _choices(question: str, given: Mapping[str, str]) -> dict[str, str]:
    """Return the choices of a question with their explanations, for the completion of a shell."""
    from scaffold import source  # noqa: PLC0415
    from scaffold.questions import Questionnaire  # noqa: PLC0415

    questionnaire = Questionnaire(source.template_root())
    if question not in questionnaire.askable:
        return {}
    # An answer that is half typed or wrong is no reason for a traceback in the middle of a command.
    with contextlib.suppress(ScaffoldError):
        return questionnaire.labels(question, questionnaire.resolve({"project_name": "shop", **given}))
    return {}


def _complete_backend(incomplete: str) -> list[tuple[str, str]]:
    return _starting(incomplete, _choices("backend", {}))


def _complete_keys(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    return _starting(incomplete, _choices("keys", _chosen(backend=ctx.params.get("backend"))))


def _complete_data(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete a question, and after its `=` a choice."""
    from scaffold import source  # noqa: PLC0415
    from scaffold.questions import Questionnaire  # noqa: PLC0415

    question, equals, _ = incomplete.partition("=")
    if not equals:
        questions = Questionnaire(source.template_root()).questions.values()
        return _starting(incomplete, {f"{one.name}=": one.help for one in questions if not one.is_computed})
    pairs = [entry.partition("=") for entry in ctx.params.get("data") or []]
    given = {name: value for name, _, value in pairs} | _chosen(backend=ctx.params.get("backend"))
    labels = _choices(question, given)
    return _starting(incomplete, {f"{question}={value}": label for value, label in labels.items()})


def _starting(incomplete: str, words: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(word, explanation) for word, explanation in words.items() if word.startswith(incomplete)]


Keys = Annotated[
    str | None,
    typer.Option(
        "--keys",
        metavar="KEYS",
        help="Key strategy; listed by `scaffold backends`.",
        autocompletion=_complete_keys,
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        "-d",
        metavar="KEY=VALUE",
        help="Any other answer; may be repeated.",
        autocompletion=_complete_data,
    ),
]
AnswersFile = Annotated[
    Path | None,
    typer.Option("--answers", metavar="FILE.yml", help="Answers as YAML; options override them."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Domain = Annotated[
    str | None,
    typer.Option(
        "--domain",
        metavar="DOMAIN",
        help="Domain: ledger (a sample), none, or a file that declares it.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scaffold {__version__}")
        raise typer.Exit


def _named(path: str) -> Path:
    if not path:
        # It would mean the current folder, which an empty variable of a shell does not.
        raise typer.BadParameter("no folder is named; the current one is `.`")
    return Path(path)


@app.callback()
def scaffold(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Generate an application on distributed SQL that works the minute it is generated."""


@app.command()
def new(  # noqa: PLR0917 - Typer passes the options by keyword
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", parser=_named, help="Folder to create; it names the project."),
    ],
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            metavar="BACKEND",
            help="Database; listed by `scaffold backends`.",
            autocompletion=_complete_backend,
        ),
    ] = None,
    keys: Keys = None,
    domain: Domain = None,
    data: Data = None,
    answers_file: AnswersFile = None,
    git: Annotated[
        bool, typer.Option("--git/--no-git", help="Create a repository with a first commit.")
    ] = True,
    lock: Annotated[
        bool | None,
        typer.Option("--lock/--no-lock", help="Write uv.lock, with hashes; by default if uv is installed."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the answers and the files; write nothing.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing on a terminal, either: take the defaults.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Create a project.

    On a terminal, ask for each answer that is not given, offer the author from git's configuration, and show
    the plan before anything is written. Elsewhere, and with --yes, take the defaults, which are the same on
    every machine.
    """
    with reported(debug):
        from scaffold import render, source  # noqa: PLC0415
        from scaffold.questions import Questionnaire  # noqa: PLC0415

        root = source.template_root()
        questionnaire = Questionnaire(root)
        given = _given(answers_file, data or [], backend=backend, keys=keys, domain=domain)
        declaration = _declare(domain, given)
        # The folder's name, unless a name was given. Never Copier's own default, which would be the name of
        # the staging folder that the project is rendered to.
        is_named = "project_name" in given
        given.setdefault("project_name", Path(os.path.abspath(path)).name)  # noqa: PTH100
        ask = sys.stdin.isatty() and sys.stdout.isatty() and not (dry_run or yes)
        try:
            with _naming_lines(declaration):
                answers = questionnaire.resolve(given, asked=ask)
        except BadInput as error:
            if is_named or error.question != "project_name":
                raise
            raise BadInput(f"{error}, the name of the folder. Add -d project_name=… for another.") from error
        if dry_run:
            _print_plan(path, {name: answers[name] for name in questionnaire.askable}, given)
            for file in render.temporary_render(root, given):
                typer.echo(f"  {file}")
            return
        if lock is None:
            lock = shutil.which("uv") is not None
        is_asked = ask and any(
            name not in given and questionnaire.applies(name, answers) for name in questionnaire.askable
        )
        terminal = None
        if is_asked:
            steps = ["uv.lock"] * lock + ["a git repository with a first commit"] * git
            terminal = render.Terminal(
                defaults=_author(questionnaire, answers),
                agrees=lambda answers, count: _agrees(path, questionnaire.askable, answers, count, steps),
            )
        project = render.make(root, path, given, git=git, lock=lock, terminal=terminal)
        if "_commit" not in source.origin(root):
            project.notes.append(
                "template: no version is recorded, because this installation has no repository to name; "
                "`scaffold update` needs `_src_path` and `_commit` in .copier-answers.yml"
            )
        elif source.has_uncommitted_changes(root):
            project.notes.append(
                "template: has uncommitted changes, which `scaffold update` cannot find again"
            )
        _print_next_steps(path, project)


@app.command()
def update(  # noqa: PLR0917 - Typer passes the options by keyword
    folder: Annotated[
        Path,
        typer.Argument(metavar="[DIR]", parser=_named, help="Folder of the project.", show_default=False),
    ] = Path(),
    domain: Domain = None,
    data: Data = None,
    answers_file: AnswersFile = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="VERSION",
            help="Tag, branch or commit of the template, or :current:.  [default: the newest release]",
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Tell what would happen; change nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Update a project to another version of the template, or to other answers.

    Exit code: 0 if all is merged; 1 if you have to look at something, or, with --check, if there is an
    update; 2 if it could not run, and the project is as it was.
    """
    with reported(debug):
        from scaffold import update  # noqa: PLC0415

        given = _given(answers_file, data or [], domain=domain)
        declaration = _declare(domain, given)
        talk = _console(stderr=True)
        with contextlib.ExitStack() as stack:
            waiting = _busy(talk, "merging both versions") if talk.is_terminal else contextlib.nullcontext()
            with waiting, _naming_lines(declaration):
                found, merge = stack.enter_context(update.prepared(folder, given, to=to))
            _print_update(folder, found)
            if merge is None or not found.is_due:
                return
            obstacle = merge.obstacle() if check else None
            if not check:
                merge.apply()
            _print_findings(found)
            if obstacle:
                typer.echo(f"in the way: git ignores it, and the new version has that file\n  {obstacle}")
            _print_steps_after_update(folder, found, check=check)
        raise typer.Exit(int(check or found.needs_a_look))


@app.command()
def backends(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the backends and their key strategies."""
    with reported(debug):
        from scaffold import source  # noqa: PLC0415
        from scaffold.questions import Questionnaire  # noqa: PLC0415

        profiles = Questionnaire(source.template_root()).profiles()
        shown = ("title", "summary", "topology", "nodes", "image", "sqlalchemy", "embedded")
        rows = {
            name: {key: profile[key] for key in shown}
            | {"keys": list(profile["key_strategies"]), "default_keys": profile["key_strategy"]}
            for name, profile in profiles.items()
        }
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
            return
        for name, row in rows.items():
            others = [key for key in row["keys"] if key != row["default_keys"]]
            typer.secho(name, fg="green")
            _print_fields(
                {
                    "what it is": f"{row['title']}: {row['summary']}",
                    "nodes": ", ".join(f"{node['name']} ({node['role']})" for node in row["nodes"]),
                    "keys": ", ".join([f"{row['default_keys']} (default)", *others]),
                    "SQLAlchemy": row["sqlalchemy"],
                    "without Docker": row["embedded"],
                }
            )


@app.command()
def demo(
    backend: Annotated[
        str | None,
        typer.Argument(
            metavar="[BACKEND]",
            help="Listed by `scaffold backends`.",
            show_default=False,
            autocompletion=_complete_backend,
        ),
    ] = None,
    keys: Keys = None,
    folder: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Folder of the project.  [default: .demo/BACKEND]"),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the cluster running.")] = False,
    debug: Debug = False,
) -> None:
    """Create a project, run it and verify it.

    Render, install, start the cluster, migrate, verify, stop. The exit code is that of `verify`.
    """
    with reported(debug):
        from scaffold import demo, source  # noqa: PLC0415
        from scaffold.questions import Questionnaire  # noqa: PLC0415

        root = source.template_root()
        given = {"project_name": "shop"} | _chosen(backend=backend, keys=keys)
        answers = Questionnaire(root).resolve(given)
        name = "-".join([answers["backend"], *([keys] if keys else [])])
        project = (folder or Path(".demo") / name).absolute()
        out = _console()
        out.print(f"[bold]{answers['profile']['title']}[/bold] in {_shown(project)}", highlight=False)
        code = demo.run(
            root,
            project,
            given,
            keep=keep,
            log=lambda line: out.print(line, style="dim", markup=False),
            busy=lambda what: _busy(out, what),
        )
        if code:
            _complain(f"verify exited with {code}. The project is in {_shown(project)}")
        else:
            out.print("Nothing failed. Next, in this project or in one of your own:", style="green")
            own = f"scaffold new NAME --backend {answers['backend']}"
            for step in [*_next_steps(project, shown=_shown(project)), own]:
                out.print(f"  {step}", markup=False, highlight=False)
        raise typer.Exit(code)


@app.command()
def matrix(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the projects, one per variant.")],
    run: Annotated[bool, typer.Option("--run", help="Run the tests of each project.")] = False,
    as_json: AsJson = False,
    only: Annotated[
        str, typer.Option("--only", metavar="TEXT", help="Take only variants with TEXT in the name.")
    ] = "",
    debug: Debug = False,
) -> None:
    """Render every variant; with --run, run the tests of each.

    With --run, the exit code is 1 if a test fails.
    """
    with reported(debug):
        from scaffold import matrix, source  # noqa: PLC0415
        from scaffold.questions import Questionnaire  # noqa: PLC0415

        root = source.template_root()
        every = matrix.variants(Questionnaire(root))
        chosen = [variant for variant in every if only in variant.name]
        if not chosen:
            raise BadInput(
                f"No variant has {only!r} in its name. Variants: {', '.join(one.name for one in every)}."
            )
        talk = _console(stderr=True)
        matrix.render_all(root, chosen, folder, lambda one: talk.print(f"rendered {one.name}", style="dim"))
        if not run:
            listed = {variant.name: dict(variant.answers) for variant in chosen}
            typer.echo(json.dumps(listed, indent=2) if as_json else "\n".join(listed))
            return
        outcomes = []
        for outcome in matrix.run_all(chosen, folder):
            talk.print(f"ran {outcome.variant}: {outcome.status}", style="dim")
            outcomes.append(outcome)
        if as_json:
            typer.echo(json.dumps([outcome.as_json() for outcome in outcomes], indent=2))
        else:
            _print_outcomes(outcomes)
        raise typer.Exit(int(any(outcome.status == "FAIL" for outcome in outcomes)))


@contextlib.contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Turn an error or a signal into a message and an exit code; no other place does."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        # An exception runs the cleanup of every block that is left.
        raise SystemExit(128 + number)

    # A signal that is ignored, as under `nohup`, stays ignored.
    handled = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, stop)
    failure: BaseException
    try:
        yield
        return
    except ScaffoldError as error:
        failure, code = error, error.exit_code
        _complain(str(error))
    except KeyboardInterrupt as error:
        failure, code = error, INTERRUPTED
        _complain("Stopped.")
    except BrokenPipeError:
        # The reader has seen enough: `scaffold … | head`.
        raise
    except OSError as error:
        failure, code = error, 1
        _complain(f"{error.filename or 'The system'}: {error.strerror or error}.")
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
    if debug:
        traceback.print_exception(failure)
    raise typer.Exit(code)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot encode must not turn a message into a traceback.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with _words_of_bash():
        app(prog_name="scaffold")


@contextlib.contextmanager
def _words_of_bash() -> Iterator[None]:
    """Complete `question=answer` as one word, which bash cuts into three; print what replaces the last."""
    words = os.environ.get("COMP_WORDS", "").split("\n")
    if os.environ.get("_SCAFFOLD_COMPLETE") != "complete_bash" or "=" not in words:
        yield
        return
    joined: list[str] = []
    for word in words[: int(os.environ["COMP_CWORD"]) + 1]:
        if joined and (word == "=" or joined[-1].endswith("=")):
            joined[-1] += word
        else:
            joined.append(word)
    os.environ |= {"COMP_WORDS": "\n".join(joined), "COMP_CWORD": str(len(joined) - 1)}
    question, equals, _ = joined[-1].partition("=")
    try:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            yield
    finally:
        cut = len(question + equals) if equals else 0
        typer.echo("\n".join(line[cut:] for line in output.getvalue().splitlines()))


def _given(answers_file: Path | None, data: list[str], **options: str | None) -> dict[str, Any]:
    """Combine the answers of the answers file, of -d and of the options, in ascending precedence."""
    from scaffold.questions import read_answers  # noqa: PLC0415

    given = read_answers(answers_file) if answers_file else {}
    pairs: dict[str, str] = {}
    for entry in data:
        name, separator, value = entry.partition("=")
        if not separator:
            raise BadInput(f"-d {entry!r} has no '='. Write -d question=answer.")
        if name in pairs and pairs[name] != value:
            raise BadInput(f"-d gives {name} twice, {pairs[name]!r} and {value!r}. Leave one out.")
        pairs[name] = value
    for name, chosen in _chosen(**options).items():
        if pairs.get(name, chosen) != chosen:
            raise BadInput(
                f"--{name} {chosen} and -d {name}={pairs[name]} contradict each other. Leave one out."
            )
        pairs[name] = chosen
    return given | pairs


def _declare(domain: str | None, given: dict[str, Any]) -> "Declaration | None":
    """Read the file that `--domain` names, if it names one, into the answers."""
    from scaffold import domain as domains  # noqa: PLC0415

    if domain is None or not ("." in domain or "/" in domain or os.path.isfile(domain)):  # noqa: PTH113 - never raises
        return None
    declaration = domains.read(Path(domain))
    given["domain"] = declaration.entities
    return declaration


@contextlib.contextmanager
def _naming_lines(declaration: "Declaration | None") -> Iterator[None]:
    """Name the line of the file in an error about the declaration."""
    try:
        yield
    except BadInput as error:
        if declaration and error.question == "domain":
            raise declaration.located(error) from error
        raise


def _chosen(**options: str | None) -> dict[str, str]:
    return {name: value for name, value in options.items() if value is not None}


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=stderr, soft_wrap=True)


@contextlib.contextmanager
def _busy(out: "Console", what: str) -> Iterator[None]:
    """Show what is being done, on a terminal with the seconds that go by."""
    if not out.is_terminal:
        out.print(what, style="dim", markup=False)
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        progress.add_task(what, total=None)
        yield


def _brief(answer: Any) -> str:
    """Return an answer for a line of text; of a mapping its names."""
    return ", ".join(answer) if isinstance(answer, dict) else json.dumps(answer, ensure_ascii=False)


def _print_fields(fields: dict[str, str]) -> None:
    """Print a line for each field, wrapped at the width of the terminal; elsewhere a line has no limit."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for label, value in fields.items():
        typer.echo(textwrap.fill(f"  {label:<16}{value}", width, subsequent_indent=" " * 18))


def _complain(message: str) -> None:
    from rich.text import Text  # noqa: PLC0415

    _console(stderr=True).print(Text.assemble(("error: ", "bold red"), message))


def _print_plan(path: Path, answers: dict[str, Any], given: dict[str, Any]) -> None:
    typer.echo("answers")
    for name, answer in answers.items():
        # JSON is YAML too, and its quotes show leading and trailing blanks.
        typer.echo(f"  {name}: {json.dumps(answer)}{'' if name in given else '  (default)'}")
    typer.echo(f"files in {path}")


def _author(questionnaire: "Questionnaire", answers: dict[str, Any]) -> dict[str, str]:
    """Return the author of git's configuration, as far as a project can have that name and e-mail."""
    from scaffold.repository import GitFailed, git  # noqa: PLC0415

    found = {}
    for question, setting in (("author_name", "user.name"), ("author_email", "user.email")):
        with contextlib.suppress(OSError, GitFailed, BadInput):
            value = git(Path.cwd(), "config", "--get", setting)
            questionnaire.check(question, {**answers, question: value})
            found[question] = value
    return found


def _agrees(path: Path, questions: list[str], answers: Any, count: int, steps: list[str]) -> bool:
    """Show what will be created, and return the user's decision; Enter is yes."""
    shown = {name: answers[name] for name in questions if name in answers}
    fields = {name: value if isinstance(value, str) else _brief(value) for name, value in shown.items()}
    profile = answers["profile"]
    fields["backend"] = f"{answers['backend']}: {profile['summary']}"
    typer.secho(f"\nTo be created in {_shown(path.absolute())}", bold=True)
    _print_fields({**fields, "files": ", ".join([str(count), *steps])})
    try:
        return typer.confirm("Create it?", default=True)
    except typer.Abort:
        return False


def _print_next_steps(path: Path, project: Any) -> None:
    from rich.text import Text  # noqa: PLC0415

    talk, out = _console(stderr=True), _console()
    for note in project.notes:
        talk.print(Text(note, "dim"))
    answers = project.answers
    out.print(Text(f"Created {path}: {answers['profile']['title']}, {answers['keys']} keys. Next:", "green"))
    for step in _next_steps(path):
        out.print(Text(f"  {step}"))


# Lists of an update, each with the way out.
FINDINGS = {
    "conflicts": "conflicts, marked: you and the template changed the same lines; mend, then `git add`",
    "unmerged": "not text: both changed it, and yours is kept; the template's is `git checkout --theirs`",
    "moved": "edited by you and moved; your edit is in the new place, see that it still fits",
    "dropped": "edited by you and removed by the template; kept, until you `git rm` or `git add` it",
    "deleted": "deleted by you and changed by the template; it stays deleted",
    "in_use": "changed by the template, but the project's once it exists; left alone",
}


def _print_update(folder: Path, found: Any) -> None:
    from scaffold.update import KINDS  # noqa: PLC0415

    name = folder.resolve().name
    if not found.is_due:
        typer.echo(f"{name} is up to date: {found.new}")
        return
    versions = f"{found.old} -> {found.new}" if found.old != found.new else f"{found.new}, with other answers"
    commits = f", {found.commits} commit{'s' * (found.commits != 1)}" if found.old != found.new else ""
    typer.secho(f"{name}: {versions}{commits}", fg="green")
    for question, (before, after) in found.answers.items():
        if isinstance(before, dict) and isinstance(after, dict):
            names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
            typer.echo(f"  {question}: other {', '.join(names)}")
            continue
        change = "is new, by default" if before is None else f"was {_brief(before)}, is"
        typer.echo(f"  {question}: {change} {_brief(after)}")
    counted = {word: sum(one.kind == kind for one in found.changes) for kind, word in KINDS.items()}
    parts = [f"{count} {word}" for word, count in counted.items() if count]
    typer.echo(f"files of the template: {', '.join(parts) or 'no change'}")
    for change in found.changes:
        typer.echo(f"  {change}")


def _print_findings(found: Any) -> None:
    for name, title in FINDINGS.items():
        if files := getattr(found, name):
            typer.echo(title)
            for file in files:
                typer.echo(f"  {file if isinstance(file, str) else ' -> '.join(file)}")


def _print_steps_after_update(folder: Path, found: Any, *, check: bool) -> None:
    where = "" if folder.resolve() == Path.cwd() else f" {shlex.quote(str(folder))}"
    if check:
        typer.echo(f"Nothing was changed. Next:\n  scaffold update{where}")
        return
    steps = ["git diff --staged"]
    if any(change.path == "pyproject.toml" for change in found.changes) and (folder / "uv.lock").exists():
        steps.append("uv lock")
    steps += ["make test", f"git commit --message 'Update the scaffold to {found.new}'"]
    typer.echo("Merged and staged. Next:")
    for step in [*([f"cd{where}"] if where else []), *steps]:
        typer.echo(f"  {step}")
    typer.echo("or take all of it back:\n  git reset --hard")


def _next_steps(path: Path, *, shown: str = "") -> list[str]:
    """Return the commands to type next, starting in the current directory."""
    if path.resolve() == Path.cwd():
        return list(NEXT_STEPS)
    # `cd -x` would be an option, and `cd -` means the previous directory.
    shown = shown or shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))
    return [f"cd {shown}", *NEXT_STEPS]


def _shown(path: Path) -> str:
    """Return a path, relative to the current directory if it lies below, quoted for a shell."""
    with contextlib.suppress(ValueError):
        return shlex.quote(str(path.relative_to(Path.cwd())))
    return shlex.quote(str(path))


def _print_outcomes(outcomes: list[Any]) -> None:
    from rich.table import Table  # noqa: PLC0415

    colours = {"PASS": "green", "FAIL": "red", "SKIP": "yellow"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("variant", "result", "time", "summary"):
        table.add_column(title, justify="right" if title == "time" else "left", overflow="fold")
    for outcome in outcomes:
        status = f"[{colours[outcome.status]}]{outcome.status}[/]"
        table.add_row(outcome.variant, status, f"{outcome.seconds:.1f} s", outcome.summary)
    _console().print(table)
    for outcome in outcomes:
        if outcome.status == "FAIL":
            _complain(f"{outcome.variant} failed; its output is in {_shown(outcome.log.absolute())}")
