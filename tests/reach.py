"""Find the code that a test module of a generated project can reach, so that variants share its run."""

import ast
import hashlib
import os
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cache, cached_property

# Files that no test of a project runs on this machine. tests/test_compose.py runs the containers; the
# project's test_native.py runs real nodes, if their program is installed.
PROGRAM = os.environ.get("COCKROACH_BIN") or shutil.which("cockroach")
NOT_RUN = (
    "compose.yaml",
    "cluster/",
    "/cluster/compose.py",
    "/cluster/container_cluster.py",
    *(() if PROGRAM else ("/cluster/native.py",)),
)
# Files and fields about a project that do not change its behaviour.
DESCRIPTIVE_FILES = {"LICENSE", "README.md", ".copier-answers.yml", "pyproject.toml"}
DESCRIPTIVE_FIELDS = {"license", "classifiers", "description", "authors"}
# Fields that determine the environment of the tests; `apart` stands for them.
NEEDED_FIELDS = {"dependencies", "optional-dependencies"}


class Reach:
    """The code that each test module of a project can reach.

    Imports are followed from module to module, also those inside functions and inside code in a string.
    Every test module reaches all files that are not modules: migrations, settings of tools, data. It also
    reaches the migrations below `tests`, which Alembic imports, and what these import.
    """

    def __init__(
        self, project: Mapping[str, bytes], *, apart: bool = False, names: Sequence[str] = ()
    ) -> None:
        """Read a project.

        Args:
            project: its files.
            apart: its tests have an environment of their own.
            names: names of the package and the project, which make no difference: who compares projects
                that have other names runs the one with the longest.
        """
        every = {
            _renamed(name.encode(), names).decode(): _renamed(data, names)
            for name, data in project.items()
            if not (name.startswith(NOT_RUN) or name.endswith(NOT_RUN))
        }
        declared = tomllib.loads(every["pyproject.toml"].decode())
        fields = declared.pop("project")
        kept = {
            name: value for name, value in fields.items() if name not in DESCRIPTIVE_FIELDS | NEEDED_FIELDS
        }
        self._modules = {
            _dotted(name): data.decode()
            for name, data in every.items()
            if name.endswith(".py") and name.startswith(("src/", "tests/"))
        }
        others = {
            name: data
            for name, data in every.items()
            if name not in DESCRIPTIVE_FILES and _dotted(name) not in self._modules
        }
        self._files = {"pyproject.toml": repr((apart, kept, declared)).encode(), **others}
        self._everywhere = repr(sorted(self._files.items()))

    @property
    def test_modules(self) -> list[str]:
        """Sorted paths of the test modules."""
        found = (name for name in self._modules if re.match(r"tests\.(\w+\.)*test_", name))
        return sorted(name.replace(".", "/") + ".py" for name in found)

    def of(self, path: str) -> str:
        """Return a hash of a test module and its reach; two runs with the same hash cannot differ."""
        seen: dict[str, str] = {}
        name = _dotted(path)
        waiting = [
            name,
            *(f"{package}.conftest" for package in _parents(name.rpartition(".")[0])),
            *(module for module in self._modules if ".migrations." in module),
        ]
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self._modules:
                continue
            seen[name] = self._modules[name]
            waiting += self._mentioned[name]
        return hashlib.sha256(repr((self._everywhere, sorted(seen.items()))).encode()).hexdigest()

    def unlike(self, other: "Reach") -> list[str]:
        """Return the modules and other files that differ, or that only one of the two projects has."""
        pairs = (self._modules, other._modules), (self._files, other._files)
        return sorted(name for mine, theirs in pairs for name, _ in set(mine.items()) ^ set(theirs.items()))

    @cached_property
    def _mentioned(self) -> Mapping[str, Set[str]]:
        packages = frozenset(name.partition(".")[0] for name in self._modules)
        return {
            name: _mentioned(name, text, packages, is_package=self._is_package(name))
            for name, text in self._modules.items()
        }

    def _is_package(self, name: str) -> bool:
        return any(other.startswith(f"{name}.") for other in self._modules)


# Cached, because variants have most of their modules in common.
@cache
def _mentioned(name: str, text: str, packages: Set[str], *, is_package: bool) -> Set[str]:
    """Return the dotted names in a module's text that may be modules."""
    found = set[str]()
    for mention in re.findall(rf"\b(?:{'|'.join(packages)})(?:\.\w+)*", text):
        found.update(_parents(mention))
    # `from shop.db import backend, keys` names modules after the dots.
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                own = name.split(".")
                inside = own if is_package else own[:-1]
                base = inside[: len(inside) - node.level + 1] + base
            for alias in node.names:
                found.update(_parents(".".join([*base, alias.name])))
    return found


def _renamed(data: bytes, names: Sequence[str]) -> bytes:
    for name in names:
        data = data.replace(name.encode(), b"this_project").replace(name.upper().encode(), b"THIS_PROJECT")
    return data


def _dotted(path: str) -> str:
    return path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _parents(dotted: str) -> Iterator[str]:
    parts = dotted.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])
