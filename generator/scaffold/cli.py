"""Command line: parse the arguments, call the other modules, print the result.

Each command imports the modules that it needs: Copier and Jinja take longer to import than `scaffold --help`
takes to run.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from scaffold import __version__
from scaffold.errors import BadInput, ScaffoldError

if TYPE_CHECKING:
    from rich.console import Console

    from scaffold.domain import Declaration

ENDING = (signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
# Targets of a generated project's Makefile, in the order of a first visit.
NEXT_STEPS = ("make up", "make verify", "make test")

app = typer.Typer(
    help="Generate an application on distributed SQL that works the minute it is generated.",
    no_args_is_help=True,
    add_completion=False,
    # Plain help, because colours double the time that `--help` takes.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Keys = Annotated[
    str | None, typer.Option("--keys", metavar="KEYS", help="Key strategy; listed by `scaffold backends`.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
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
        typer.Option("--backend", metavar="BACKEND", help="Database; listed by `scaffold backends`."),
    ] = None,
    keys: Keys = None,
    domain: Annotated[
        str | None,
        typer.Option(
            "--domain", metavar="DOMAIN", help="What to store: ledger (a sample), none, or the file of a declaration."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", metavar="KEY=VALUE", help="Any other answer; may be repeated."),
    ] = None,
    answers_file: Annotated[
        Path | None,
        typer.Option("--answers", metavar="FILE.yml", help="Answers as YAML; options override them."),
    ] = None,
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
    debug: Debug = False,
) -> None:
    """Create a project.

    On a terminal, ask for each answer that is not given; elsewhere, take the defaults.
    """
    with reported(debug):
        from scaffold import render, source  # noqa: PLC0415
        from scaffold.questions import Questionnaire  # noqa: PLC0415

        root = source.template_root()
        questionnaire = Questionnaire(root)
        given = _given(answers_file, data or [], backend=backend, keys=keys, domain=domain)
        declaration = _declared(given.get("domain")) if domain else None
        if declaration:
            given["domain"] = declaration.entities
        # The folder's name, unless a name was given. Never Copier's own default, which would be the name of
        # the staging folder that the project is rendered to.
        is_named = "project_name" in given
        given.setdefault("project_name", Path(os.path.abspath(path)).name)  # noqa: PTH100
        ask = sys.stdin.isatty() and sys.stdout.isatty() and not dry_run
        try:
            answers = questionnaire.resolve(given, asked=ask)
        except BadInput as error:
            if declaration and error.question == "domain":
                raise BadInput(declaration.explain(str(error))) from error
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
        project = render.make(root, path, given, git=git, lock=lock, ask=ask)
        if source.has_uncommitted_changes(root):
            project.notes.append("template: has uncommitted changes, which `copier update` cannot find again")
        _print_next_steps(path, project)


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
        typer.Argument(metavar="[BACKEND]", help="Listed by `scaffold backends`.", show_default=False),
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
            root, project, given, keep=keep, log=lambda line: out.print(line, style="dim", markup=False)
        )
        if code == 0:
            out.print(f"[green]Nothing failed.[/green] The project is in {_shown(project)}", highlight=False)
        else:
            _complain(f"verify exited with {code}. The project is in {_shown(project)}")
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
    app(prog_name="scaffold")


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


def _declared(domain: str) -> "Declaration | None":
    """Read the file of a declaration; None if the answer is a name."""
    from scaffold import domain as domains  # noqa: PLC0415

    return domains.read(Path(domain)) if "." in domain or "/" in domain or Path(domain).is_file() else None


def _chosen(**options: str | None) -> dict[str, str]:
    return {name: value for name, value in options.items() if value is not None}


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=stderr, soft_wrap=True)


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


def _print_next_steps(path: Path, project: Any) -> None:
    from rich.text import Text  # noqa: PLC0415

    talk, out = _console(stderr=True), _console()
    for note in project.notes:
        talk.print(Text(note, "dim"))
    answers = project.answers
    out.print(Text(f"Created {path}: {answers['profile']['title']}, {answers['keys']} keys. Next:", "green"))
    for step in _next_steps(path):
        out.print(Text(f"  {step}"))


def _next_steps(path: Path) -> list[str]:
    """Return the commands to type next, starting in the current directory."""
    if path.resolve() == Path.cwd():
        return list(NEXT_STEPS)
    # `cd -x` would be an option, and `cd -` means the previous directory.
    shown = f"./{path}" if str(path).startswith("-") else str(path)
    return [f"cd {shlex.quote(shown)}", *NEXT_STEPS]


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
