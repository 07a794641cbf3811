"""Read the declaration of a domain, a YAML file of entities and their fields, and say where it is wrong.

The template itself reads the types of the fields (template/domains/design.jinja), so that `copier copy` takes
the same declaration as an answer. This module only turns a file into that answer: names and types are text
here, as they are written, where YAML would read `on` as true and `[held, paid] = held` not at all.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from scaffold.errors import BadInput

# A value that begins with a list and goes on after it, which YAML refuses, up to a comment.
CHOICE = re.compile(r"^(\s*[^\s#'\"][^:#]*:\s+)(\[[^\]#]*\][^#\n]*?)(\s*(?:\s#.*)?)$")

# Largest file in bytes; arbitrary, many times that of a domain of 1000 entities.
LARGEST = 1_000_000


@dataclass(frozen=True)
class Declaration:
    """The entities of a file with their fields, each as it is written, and the line of each."""

    file: Path
    entities: Mapping[str, Mapping[str, str]]
    lines: Mapping[str, int]

    def located(self, error: BadInput) -> BadInput:
        """Return an error that begins with a name of the declaration, with file and line before it."""
        name = str(error).partition(": ")[0]
        line = self.lines.get(name) or self.lines.get(name.partition(".")[0], 1)
        return BadInput(f"{self.file}, line {line}: {error}", question=error.question)


def read(file: Path) -> Declaration:
    """Read a declaration.

    Raises:
        BadInput: the file cannot be read, or is not a mapping of entities; the message names the line.
    """
    try:
        content = file.read_bytes()
        if len(content) > LARGEST:
            raise BadInput(f"The declaration {file} has more than 1 MB. Name a file of entities and fields.")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise BadInput(f"The declaration {file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"The declaration {file} is not UTF-8. Save it as UTF-8.") from error
    quoted = "\n".join(CHOICE.sub(_quote, line) for line in text.splitlines())
    try:
        root = yaml.compose(quoted, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise BadInput(
            f"{file}{where}: this is not YAML. Write an entity in a line of its own, such as `Room:`, and "
            "below it its fields, indented: `  number: int`."
        ) from error
    entities: dict[str, dict[str, str]] = {}
    lines: dict[str, int] = {}
    for declared, line_of_entity, fields in _entries(file, root, "entities"):
        name = declared.partition(" in ")[0]
        lines[name] = line_of_entity
        entities[declared] = {}
        for field, line, value in _entries(file, fields, f"the fields of {name}"):
            lines[f"{name}.{field}"] = line
            entities[declared][field] = _written(file, value)
    return Declaration(file, entities, lines)


def _quote(line: re.Match[str]) -> str:
    choice = line[2].replace("'", "''")
    return f"{line[1]}'{choice}'{line[3]}"


def _entries(file: Path, node: yaml.Node | None, what: str) -> Iterator[tuple[str, int, yaml.Node]]:
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
        return
    if not isinstance(node, yaml.MappingNode):
        raise BadInput(
            f"{file}, line {node.start_mark.line + 1}: {what} are lines with a name and a colon, such as "
            f"`{'Room:' if what == 'entities' else 'number: int'}`."
        )
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise BadInput(f"{file}, line {line}: a name is one word. Write it without brackets.")
        if key.value in seen:
            raise BadInput(
                f"{file}, line {line}: {key.value} is in line {seen[key.value]} already. Leave one out."
            )
        seen[key.value] = line
        yield key.value, line, value


def _written(file: Path, node: yaml.Node) -> str:
    """Return the type of a field as it is written."""
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return f"[{', '.join(str(item.value) for item in node.value)}]"
    raise BadInput(
        f"{file}, line {node.start_mark.line + 1}: this is not a type. Write one such as str(100), int?, "
        "-> Entity, [one, two]."
    )
