"""Figures of the template: how much of it forks, how long the projects are, and whether they are documented.

    python tests/house.py

renders a project for each backend, prints the figures and exits with 1 if one misses its limit.
"""

import ast
import contextlib
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]

CONTROL_TAG = re.compile(r"\{%[-+]?\s*(?:if|elif|else|endif|for|endfor|set)\b.*?%\}", re.DOTALL)
TAG = re.compile(r"\{%.*?%\}|\{\{.*?\}\}", re.DOTALL)
# The longest `src` that a project of that backend may have, asyncio included. Lower a limit whenever
# a change allows it; raise it only for what a user can see, in a commit that says what. The lengths
# were 5514 and 7465 before the rules of the runtime on objects, reads, values of bulk loads, URLs,
# forks and full pools, 6434 and 8425 before those on who reads what the application owns, who owns the
# folders of a cluster, and what a revision may state, and 6882 and 8883 before the comparison of rows,
# four roles instead of one, servers that prove who they are, and a `verify` that may be killed, and 7974
# and 9643 before revisions were judged by their effects, planned and written in steps, and 9700 and
# 10850 before a `verify` that finds every fault of a catalogue and names the way out, and 11400 and
# 12300 before a `verify` that only reads, its page, its live view and its probes of isolation, a `diff` that
# goes on where it was, and moves that compare the copy with its source, and 13000 and 14200 before seed
# data, CHECKs that revisions write, causes that `verify` names, lags as bars, and plans for the tenants.
LINES = {"pgedge": 13500, "tenants": 14800}
GENERATED = "Generated from"
HEAD = 5  # lines

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Figure:
    """One number and the limit that it has to keep."""

    name: str
    value: int
    least: int | None = None
    most: int | None = None

    @property
    def holds(self) -> bool:
        """True if the limit is kept."""
        return (self.least is None or self.value >= self.least) and (
            self.most is None or self.value <= self.most
        )

    def __str__(self) -> str:
        """Return a row of the report."""
        limit = (
            f">= {self.least}"
            if self.least is not None
            else f"<= {self.most}"
            if self.most is not None
            else ""
        )
        return f"{self.name:<56} {self.value:>6} {limit:>8} {'' if self.holds else 'MISSED'}".rstrip()


def figures(renders: Mapping[str, Path]) -> list[Figure]:
    """Return all figures, given a project with asyncio for each backend."""
    project = ROOT / "template/project"
    projects = {backend: Project(folder) for backend, folder in renders.items()}
    common = set.intersection(*(set(one.modules) for one in projects.values()))
    alike = {name for name in common if len({one.modules[name] for one in projects.values()}) == 1}
    undocumented = {name for one in projects.values() for name in one.undocumented}
    return [
        Figure("control tags in template/project/src", count(CONTROL_TAG, project / "src"), most=60),
        Figure("control tags in template/project", count(CONTROL_TAG, project), most=150),
        Figure("tags and expressions that ask `replication`", asking("replication", project), most=0),
        Figure("files that all projects have", len(common)),
        Figure("files that are the same bytes in all projects", len(alike), least=48),
        *(
            Figure(f"lines of src: {backend}", one.lines, most=LINES.get(backend))
            for backend, one in projects.items()
        ),
        Figure("public functions and classes without a docstring", len(undocumented), most=0),
    ]


def count(pattern: re.Pattern[str], folder: Path) -> int:
    """Count the matches in all files of a folder."""
    return sum(len(pattern.findall(text)) for text in _texts(folder))


def asking(key: str, folder: Path) -> int:
    """Count the tags and expressions, those in the names of files too, that have `key` in them."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    return sum(key in tag for text in [*_texts(folder), *names] for tag in TAG.findall(text))


def _texts(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.read_text(encoding="utf-8")


class Project:
    """The code of a rendered project."""

    def __init__(self, folder: Path) -> None:
        """Read every Python file below `folder`."""
        self.modules = {
            str(path.relative_to(folder)): path.read_text(encoding="utf-8")
            for path in sorted(folder.rglob("*.py"))
        }

    @cached_property
    def sources(self) -> dict[str, ast.Module]:
        """The modules of `src`, by dotted name."""
        return {
            _dotted(name): ast.parse(text) for name, text in self.modules.items() if name.startswith("src/")
        }

    @property
    def lines(self) -> int:
        """Number of lines in `src`, generated files aside."""
        texts = [text.splitlines() for name, text in self.modules.items() if name.startswith("src/")]
        return sum(len(text) for text in texts if not any(GENERATED in line for line in text[:HEAD]))

    @property
    def undocumented(self) -> list[str]:
        """The public functions and classes of `src` that have no docstring."""
        return [
            f"{module}.{name}"
            for module, tree in self.sources.items()
            for name, node in _public(tree)
            if ast.get_docstring(node) is None
        ]

    @property
    def unexported(self) -> list[str]:
        """Types that a public signature names and that the package defining them does not export.

        A package with `__all__` is public; so are the methods that its classes inherit within the project.
        A type in a module outside of all public packages is public by the name of its module.
        """
        packages = {module: names for module, tree in self.sources.items() if (names := _exports(tree))}
        exported = {
            (package, name): self._find(package, name) for package in packages for name in packages[package]
        }
        public = set(exported.values())
        missing = {
            f"{package}.{name} uses {module}.{type_}"
            for (package, name), definition in exported.items()
            for module, type_ in self._types_of(*definition)
            if (module, type_) not in public
            and any(f"{module}.".startswith(f"{other}.") for other in packages)
        }
        return sorted(missing)

    def _find(self, module: str, name: str) -> tuple[str, str]:
        """Return the module that defines a name, following imports within the project."""
        tree = self.sources.get(module)
        if tree is None:
            return module, name
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level + bool(node.module):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        origin = self._origin(module, node)
                        if f"{origin}.{alias.name}" in self.sources:
                            return f"{origin}.{alias.name}", ""
                        return self._find(origin, alias.name)
        return module, name

    def _origin(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        is_package = any(other.startswith(f"{module}.") for other in self.sources)
        base = parts[: len(parts) - node.level + is_package]
        return ".".join([*base, *([node.module] if node.module else [])])

    def _definition(self, module: str, name: str) -> ast.stmt | None:
        """Return the statement at the top of a module that defines a name."""
        for node in self.sources[module].body if module in self.sources else []:
            match node:
                case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef() if node.name == name:
                    return node
                case ast.AnnAssign(target=ast.Name(id=found)) if found == name:
                    return node
                case ast.Assign(targets=[ast.Name(id=found)]) if found == name:
                    return node
        return None

    def _types_of(self, module: str, name: str) -> Iterator[tuple[str, str]]:
        """Yield the types of the project that the signatures of a definition name."""
        node = self._definition(module, name)
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                for found in self._types_in(module, base):
                    yield from self._types_of(*found)
        for annotation in _annotations(node):
            yield from self._types_in(module, annotation)

    def _types_in(self, module: str, annotation: ast.expr) -> Iterator[tuple[str, str]]:
        for node in ast.walk(annotation):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                # A forward reference, or a word in a Literal, which is the name of nothing.
                with contextlib.suppress(SyntaxError):
                    yield from self._types_in(module, ast.parse(node.value, mode="eval").body)
            elif isinstance(node, ast.Name):
                found = self._find(module, node.id)
                definition = self._definition(*found)
                if definition is not None and not _is_variable(definition):
                    yield found


def _dotted(path: str) -> str:
    return path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _public(
    tree: ast.Module | ast.ClassDef, prefix: str = ""
) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Yield the public functions and classes of a module with their names, and the methods of the latter."""
    for node in tree.body:
        if (
            isinstance(node, Function | ast.ClassDef)
            and not node.name.startswith("_")
            and not _is_repeated(node)
        ):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _public(node, f"{prefix}{node.name}.")


def _is_repeated(node: Function | ast.ClassDef) -> bool:
    """Tell whether a function is documented elsewhere: an overload, a setter, an override."""
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return bool(decorators & {"overload", "setter", "override"})


def _exports(tree: ast.Module) -> list[str]:
    """Return the names in `__all__`, if a module has it."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def _annotations(node: ast.stmt | None) -> Iterator[ast.expr]:
    """Yield the annotations of a function, or of the public methods and fields of a class."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            found = [argument.annotation for argument in ast.walk(node.args) if isinstance(argument, ast.arg)]
            yield from (annotation for annotation in [*found, node.returns] if annotation)
        case ast.ClassDef():
            for member in node.body:
                if isinstance(member, Function) and (member.name[0] != "_" or member.name.endswith("__")):
                    yield from _annotations(member)
                elif isinstance(member, ast.AnnAssign) and not ast.unparse(member.target).startswith("_"):
                    yield member.annotation


def _is_variable(definition: ast.stmt) -> bool:
    """Tell whether a definition is a type variable, or no type at all."""
    if isinstance(definition, ast.Assign | ast.AnnAssign):
        value = ast.unparse(definition.value) if definition.value else ""
        return value.startswith(("TypeVar(", "ParamSpec(", "TypeVarTuple("))
    return not isinstance(definition, ast.ClassDef)


def main() -> int:
    """Print the figures; return 1 if one misses its limit."""
    sys.path.insert(0, str(ROOT / "generator"))
    from scaffold.questions import Questionnaire  # noqa: PLC0415
    from scaffold.render import render  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="scaffold-") as folder:
        renders = {}
        for backend in Questionnaire(ROOT).choices("backend", {}):
            renders[backend] = Path(folder) / backend
            render(ROOT, renders[backend], {"project_name": "shop", "backend": backend, "asyncio": True})
        found = figures(renders)
    print(*found, sep="\n")
    return int(not all(figure.holds for figure in found))


if __name__ == "__main__":
    sys.exit(main())
