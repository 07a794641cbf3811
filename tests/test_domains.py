"""Declared domains: what is refused, what is rendered, and the life of projects that have one.

`make test-domains` runs the tests on real clusters, too: DOMAIN_LIVES=1, and DOMAIN_SEEDS="3 14" for random domains.
"""

# ruff: noqa: E501 - a declaration and its message in one line

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml

import random_domain
from conftest import QUESTIONNAIRE, ROOT, Scaffold, files, git
from lives import Life, held_by, live, read
from random_domain import Declaration
from scaffold import domain, matrix
from scaffold.errors import BadInput
from scaffold.render import render

SHAPES = {file.stem: file for file in sorted((ROOT / "tests" / "domains").glob("*.yml"))}
PROFILES = QUESTIONNAIRE.profiles()
BACKENDS = list(PROFILES)
REFUSED = 2

# A backend of each kind of fact, so that no test needs to name one.
MESH = next(name for name, profile in PROFILES.items() if not profile["unique_is_global"])
GLOBAL = next(name for name, profile in PROFILES.items() if profile["unique_is_global"])
IMMEDIATE = next(name for name, profile in PROFILES.items() if not profile["constraints_are_deferrable"])
# A shape for each backend.
CHOSEN = dict(zip(BACKENDS, ("shop", "payroll", "wiki", "invoices", "tickets"), strict=True))


lives = pytest.mark.skipif(
    not os.environ.get("DOMAIN_LIVES"), reason="`make test-domains` runs it: it takes minutes"
)


def room(**fields: Any) -> dict[str, Any]:
    return {"Room": fields}


def hotel(**fields: Any) -> dict[str, Any]:
    return {"Hotel": {"name": "str"}, "Room": fields}


TYPES = "Types: str, text, int, decimal"
NAME = "begins with a capital letter"
FIELD = "ASCII letters, digits and _"
TAKEN = "is taken: every record has it, or Python does. Write two words, such as room_"
OWN = "the project uses this name itself. Write two words, such as "
VALUE = "is not a value of a choice. Write [one, two]"

# Declarations that are refused, with what the message says.
HOSTILE: dict[str, tuple[Any, str]] = {
    # The answer itself
    "misspelt": ("ledgr", "that is not a domain (did you mean 'ledger'?)"),
    "file": ("rooms.yml", "`scaffold new … --domain rooms.yml` reads the file"),
    "number": (7, "Write ledger (the sample), none, or a declaration"),
    "list": (["Room"], "Write ledger (the sample), none, or a declaration"),
    "nothing": ({}, "the declaration is empty. Write an entity, or take domain=none"),
    # Names of entities
    "no fields": ({"Room": None}, "Room: an entity is a name and, below it, a line for each field"),
    "text for fields": ({"Room": "int"}, "Room: an entity is a name and, below it, a line for each field"),
    "number as entity": ({1: {"n": "int"}}, "YAML reads the name of an entity as 1. Write another"),
    "true as entity": ({True: {"n": "int"}}, "YAML reads the name of an entity as true. Write another"),
    "empty entity": ({"": {"n": "int"}}, 'YAML reads the name of an entity as "". Write another'),
    "small entity": ({"room": {"n": "int"}}, f"room: the name of an entity is one word that {NAME}. Write Room"),
    "two words": ({"Room one": {"n": "int"}}, f"{NAME}. Write RoomOne"),
    "line break": ({"Room\n": {"n": "int"}}, f"{NAME}. Write Room"),
    "unicode entity": ({"Räum": {"n": "int"}}, f"Räum: the name of an entity is one word that {NAME}"),
    "digit first": ({"9Room": {"n": "int"}}, NAME),
    "reserved entity": ({"Order": {"n": "int"}}, "'order' is a reserved word. Write two words, such as PurchaseOrder"),
    "keyword entity": ({"Class": {"n": "int"}}, "'class' is a reserved word. Write two words, such as ClassRecord"),
    "entity of ours": ({"Record": {"n": "int"}}, OWN),
    "imported": ({"DateTime": {"n": "int"}}, OWN + "DateTimeRecord"),
    "imported by seeds": ({"Callable": {"n": "int"}}, OWN),
    "our table": ({"BulkLoadChunk": {"n": "int"}}, OWN),
    "of the catalogue": ({"PgThing": {"n": "int"}}, OWN),
    "a key's index": ({"PkRoom": {"n": "int"}}, OWN),
    "a sequence": ({"Room": {"n": "int"}, "RoomIdSeq": {"n": "int"}}, OWN),
    "one table": (
        {"APIKey": {"n": "int"}, "ApiKey": {"n": "int"}},
        "ApiKey: its table would be 'api_key', like that of APIKey",
    ),
    "long entity": ({"R" * 50: {"n": "int"}}, "and PostgreSQL keeps 63. Shorten the entity or the field"),
    # Names of fields
    "capital field": (room(unitPrice="int"), "Room.unitPrice: PostgreSQL folds names to lower case. Write unit_price"),
    "blank": (room(**{"unit price": "int"}), FIELD),
    "underscore first": (room(_x="int"), FIELD),
    "unicode field": (room(é="int"), FIELD),
    "field with a line break": (room(**{"n\n": "int"}), FIELD),
    "true as field": ({"Room": {True: "bool"}}, "Room.True: YAML reads this name as true. Write another"),
    "long field": (room(**{"x" * 57: "int"}), "would have 65 characters, and PostgreSQL keeps 63"),
    "reserved field": (room(order="int"), "'order' is a reserved word of SQL. Write two words, such as room_order"),
    "keyword": (room(match="int"), TAKEN + "match"),
    "key": (room(id="int"), TAKEN + "id"),
    "SQLAlchemy's": (room(metadata="json"), TAKEN + "metadata"),
    "imported function": (room(relationship="str"), TAKEN + "relationship"),
    "parameter": (room(session="int"), TAKEN + "session"),
    "system column": (room(xmin="int"), TAKEN + "xmin"),
    # Types
    "misspelt type": (room(n="dattime"), f"there is no type 'dattime' (did you mean 'datetime'?). {TYPES}"),
    "foreign type": (room(n="varchar(10)"), f"there is no type 'varchar' (did you mean 'str'?). {TYPES}"),
    "size of nothing": (room(n="str(0)"), "Room.n: 'str(0)' is not a type. Write str or str(100)"),
    "two sizes": (room(n="str(10, 2)"), "Write str or str(100)"),
    "no sizes": (room(n="decimal"), "Write decimal(10, 2): the digits, and those after the point"),
    "too many places": (room(n="decimal(2, 5)"), "has more digits after the point than in all"),
    "size of an int": (room(n="int(4)"), "Room.n: 'int(4)' is not a type. Write int"),
    "question marks": (room(n="???"), "'???' is not a type. Write for example str(100)"),
    "empty": (room(n=""), "'' is not a type. Write for example str(100)"),
    "Jinja": (room(n="{{ 7*7 }}"), "'{{ 7*7 }}' is not a type"),
    "a number": (room(n=5), "Room.n: '5' is not a type"),
    "no type": (room(n=None), "Room.n: 'null' is not a type"),
    "nested": (room(n={"a": "b"}), 'Room.n: \'{"a": "b"}\' is not a type'),
    "long type": (room(n="(x y" * 2000), "…' is not a type"),
    # Words and defaults
    "misspelt word": (room(n="int uniqe"), "'uniqe' cannot stand here (did you mean 'unique'?). What can:"),
    "index of json": (room(n="json index"), "Room.n: 'index' cannot stand here. Leave it out"),
    "deferrable type": (room(n="int deferrable"), "'deferrable' cannot stand here"),
    "not null": (room(n="int NOT NULL"), "'NOT' cannot stand here"),
    "default": (room(n="int = x"), "Room.n: 'x' is not a default of int. Write 0"),
    "large default": (room(n="int = 99999999999999999999"), "is not a default of int"),
    "optional default": (room(n="int? = 5"), "a field with a default is never empty. Leave ? or the default out"),
    "no default": (room(n="json = {}"), "json takes no default. Leave = {} out"),
    "yes": (room(n="bool = yes"), "'yes' is not a default of bool. Write true or false"),
    "long default": (room(n="str(5) = toolong"), "'toolong' has more than 5 characters. Write a shorter default"),
    "too long default": (room(n="text = " + "x" * 300), "does not fit into one line of code"),
    "bell": (room(n="str = a\x07b"), "the default has a character that cannot be printed. Leave it out"),
    "digits before": (room(n="decimal(4, 2) = 123.45"), "'123.45' does not fit into decimal(4, 2). Write fewer digits"),
    "digits after": (room(n="decimal(4, 2) = 1.234"), "'1.234' does not fit into decimal(4, 2)"),
    # Choices and ranges
    "unknown choice": (room(s="[held, paid] = helt"), "'helt' is not one of the values (did you mean 'held'?)"),
    "twice": (room(s="[a, A]"), "two values of the choice are the same word. Leave one out"),
    "no choice": (room(s="[]"), VALUE),
    "dunder": (room(s="[__init__]"), VALUE),
    "quote": (room(s="[a'b]"), VALUE),
    "long choice": (room(s=f"[{'x' * 41}]"), VALUE),
    "open": (room(s="[a"), "'[a' cannot be read. Write [one, two] = one"),
    "two types": (room(p="from date to datetime"), "lies between two values of one type. Write from date to date"),
    "range of bool": (room(p="from bool to bool"), "there is no range of bool. Types: int, decimal, float"),
    "half a range": (room(p="from date"), "cannot be read. Write from date to date"),
    # References and links
    "unknown target": (hotel(h="-> Hotl"), "there is no entity 'Hotl' (did you mean 'Hotel'?). Entities: Hotel, Room"),
    "arrow": (hotel(h="->"), "'->' cannot be read. Write -> Entity, or -> Entity?"),
    "wrong way": (hotel(h="<- Hotel"), "cannot be read. Write -> Entity"),
    "unknown link": (hotel(h="<-> Hotl"), "there is no entity 'Hotl' (did you mean 'Hotel'?)"),
    "circle": (
        {"Room": {"h": "-> Hotel"}, "Hotel": {"r": "-> Room"}},
        "the references Room.h, Hotel.r form a circle, in which no record could be the first. Make one of them "
        "optional: -> Hotel?",
    ),
    "circle of one": (room(r="-> Room"), "Make one of them optional: -> Room?"),
    "link to itself": (room(r="<-> Room"), "a link of an entity to itself has two ends. Declare an entity"),
    # Names that meet
    "plural": ({"A": {"bs": "int"}, "B": {"a": "-> A"}}, "A: it would have 'bs' twice"),
    "keyword back": ({"Node": {"n": "int"}, "A": {"x": "-> Node"}}, "Node would have 'as' for the way back"),
    "version back": (
        {"Room": {"n": "int"}, "Version": {"r": "-> Room unique"}},
        "Version.r: Room would have 'version' for the way back, which is taken. Name Version otherwise",
    ),
    "key of a reference": (hotel(hotel="-> Hotel", hotel_id="int"), "it would have 'hotel_id' twice"),
    "end of a range": (room(p="from int to int", p_to="int"), "Room: it would have 'p_to' twice"),
    "class of a choice": ({"Room": {"kind": "[a]"}, "RoomKind": {"n": "int"}}, "would be the same class"),
    "imported choice": ({"Date": {"time": "[a]"}}, "its class would be 'DateTime', a name of the project"),
    "table of a link": (
        {"Tag": {"n": "int"}, "Room": {"tags": "<-> Tag"}, "RoomTags": {"n": "int"}},
        "room_tags: two tables would have this name",
    ),
    "function of a link": ({"Room": {"n": "int"}, "Remove": {"rooms": "<-> Room"}}, "a name of the services"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_declaration_is_refused_with_the_way_out(case: str) -> None:
    answer, message = HOSTILE[case]
    with pytest.raises(BadInput, match=re.escape(message)) as caught:
        QUESTIONNAIRE.resolve({"project_name": "shop", "backend": GLOBAL, "domain": answer})
    assert caught.value.question == "domain"
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["int unique", "str(10)? unique", "-> Room? unique"])
def test_a_second_unique_is_refused_where_nodes_take_the_same_value(text: str) -> None:
    with pytest.raises(BadInput, match=r"^Room\.n: UNIQUE holds on one node only.*Write index for unique"):
        QUESTIONNAIRE.resolve({"project_name": "shop", "backend": MESH, "domain": room(n=text)})


def test_a_deferrable_reference_is_refused_where_references_are_checked_at_once() -> None:
    with pytest.raises(BadInput, match=r"^Room\.n: .* checks a reference at once. Leave deferrable out"):
        QUESTIONNAIRE.resolve(
            {"project_name": "shop", "backend": IMMEDIATE, "domain": room(n="-> Room? deferrable")}
        )


# Files

BAD_FILES: dict[str, tuple[bytes, str]] = {
    "misspelt": (b"Room:\n  # comment\n\n  number: itn\n", "line 4: Room.number: there is no type 'itn' (did"),
    "comment": (b"# one\n# two\nroom:\n  n: int\n", "line 3: room: the name of an entity"),
    "twice": (b"Room:\n  n: int\n  n: str\n", "line 3: n is in line 2 already. Leave one out."),
    "entity twice": (b"Room:\n  n: int\nRoom:\n  m: int\n", "line 3: Room is in line 1 already"),
    "tab": (b"Room:\n\tn: int\n", "line 2: this is not YAML"),
    "list": (b"- Room\n", "line 1: entities are lines with a name and a colon"),
    "fields": (b"Room:\n  - n\n", "line 2: the fields of Room are lines with a name and a colon"),
    "nested": (b"Room:\n  n:\n    a: b\n", "line 3: this is not a type"),
    "bracket": (b"Room:\n  [a, b]: int\n", "line 2: a name is one word"),
    "recursive": (b"Room: &room\n  n: *room\n", "this is not a type"),
    "two documents": (b"Room:\n  n: int\n---\nHall:\n  n: int\n", "this is not YAML"),
    "not UTF-8": (b"Room:\n  n: str = \xff\n", "is not UTF-8. Save it as UTF-8."),
    "control": (b"Room:\n  n: str = a\x00b\n", "this is not YAML"),
    "empty": (b"", "line 1: the declaration is empty. Write an entity, or take domain=none"),
    "deep": (b"Room:\n  n: " + b"[" * 5000 + b"\n", "this is not YAML"),
    "huge": (b"Room:\n" + b"  # comment\n" * 100_000, "has more than 1 MB"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_its_line(case: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[case]
    file = tmp_path / "rooms.yml"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=re.escape(message)):
        declared = domain.read(file)
        try:
            QUESTIONNAIRE.resolve({"project_name": "shop", "domain": declared.entities})
        except BadInput as error:
            raise declared.located(error) from error


def test_odd_yaml_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "rooms.yml"
    plain = "Room:\n  on: bool\n  no: int\n  state: [on, off] = on\nTag:\n  rooms: <-> Room\n"
    odd = (
        "\ufeff# head\r\nRoom: !!map\r\n  'on': &kind bool   # true\r\n"
        '  no: "int"\r\n  state: [on, off] = on  # [x]\r\n'
        "Tag: {rooms: '<-> Room'}\r\n"
    )
    found = []
    for text in (plain, odd):
        file.write_bytes(text.encode())
        found.append(domain.read(file).entities)
    assert (
        found[0]
        == found[1]
        == yaml.safe_load("Room: {'on': bool, 'no': int, state: '[on, off] = on'}\nTag: {rooms: <-> Room}")
    )


@pytest.mark.parametrize("name", ["missing.yml", ".", "x" * 5000])
def test_a_domain_that_is_no_file_is_refused(scaffold: Scaffold, name: str) -> None:
    result = scaffold("new", "shop", "--no-git", "--no-lock", "--domain", name)
    assert result.returncode == REFUSED, result.stderr
    assert "Traceback" not in result.stderr
    assert not (scaffold.place / "shop").exists()


def test_the_command_line_refuses_with_line_and_code_and_writes_nothing(scaffold: Scaffold) -> None:
    file = scaffold.place / "rooms.yml"
    file.write_text("Hotel:\n  name: str\nRoom:\n  hotel: -> Hotl\n")
    result = scaffold("new", "shop", "--no-git", "--no-lock", "--domain", "rooms.yml")
    assert result.returncode == REFUSED
    shown = " ".join(result.stderr.split())
    assert "rooms.yml, line 4: Room.hotel: there is no entity 'Hotl' (did you mean 'Hotel'?)" in shown
    assert [path.name for path in scaffold.place.iterdir()] == ["rooms.yml"]


def test_plain_copier_refuses_the_same(scaffold: Scaffold) -> None:
    (scaffold.place / "data.yml").write_text('domain: {Hotel: {name: str}, Room: {hotel: "-> Hotl"}}\n')
    result = subprocess.run(
        ["copier", "copy", "--defaults", "--quiet", "--data-file", "data.yml", str(ROOT), "shop"],
        cwd=scaffold.place,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode
    assert "Room.hotel: there is no entity 'Hotl' (did you mean 'Hotel'?)" in " ".join(result.stderr.split())
    assert not (scaffold.place / "shop").exists()


# Renders

# Legal, and made to break code: names of imports, parameters and variables, quotes, binds, keywords as choices.
ODD: Declaration = {
    "Page": {
        "a": 'text = ""',
        "text": "str(60) = it's 100% of {{ this }} :that `now` \\ \"",
        "values": "int = -3",
        "func": "bool?",
        "changes": "decimal(3, 3) = 0.125",
        "page": "-> Page?",
        "serial_number": "str",
    },
    "Request": {
        "page": "-> Page",
        "page_2": "-> Page?",
        "sql": "[None, async, mro, name, value, self]? index",
    },
    "Thing2": {"pages": "<-> Page", "limit_after": "int", "records": "<-> Request"},
    "Thing10": {"thing2": "-> Thing2", "where_from": "from float to float ?", "x9": "str(1) = 👍"},
    "AbcDEFGhi": {"number": "int", "made": "-> Thing10?", "emptiness": "bytes?", "n" * 40: "int?"},
}


def test_every_domain_is_rendered_formatted_and_linted_on_every_backend(tmp_path: Path) -> None:
    """Renders the modules that depend on the domain, which takes a hundredth of the time of a project."""
    config = QUESTIONNAIRE.evaluate(
        "{% include 'template/project/pyproject.toml.jinja' %}", answers(BACKENDS[0], ODD)
    )
    (tmp_path / "pyproject.toml").write_text(config)
    for backend, profile in PROFILES.items():
        domains = {name: read(file) for name, file in SHAPES.items()} | {"odd": ODD}
        domains |= {f"random-{seed}": random_domain.domain(seed, profile) for seed in range(6)}
        for name, declaration in domains.items():
            folder = tmp_path / f"{backend}-{name}".replace("_", "-")
            for path, text in modules(backend, held_by(profile, declaration)).items():
                file = folder / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
                compile(text, str(file), "exec")
                assert "\t" not in text
                assert "Undefined" not in text
    ruff = [sys.executable, "-m", "ruff"]
    # The folders are those of many projects, whose tests are in another place than the settings say.
    ignored = [
        "--extend-ignore",
        "D103,S101,S311,INP001,D101,D100,D104",
        "--config",
        "lint.isort.known-first-party=['shop']",
    ]
    for words in ([*ruff, "check", *ignored, "."], [*ruff, "format", "--check", "."]):
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def answers(backend: str, declaration: Declaration) -> dict[str, Any]:
    return QUESTIONNAIRE.resolve({"project_name": "shop", "backend": backend, "domain": declaration})


def modules(backend: str, declaration: Declaration) -> dict[str, str]:
    """Return the modules of a project that depend on the domain, by their paths."""
    given = answers(backend, declaration)

    def rendered(name: str, **more: Any) -> str:
        return str(
            QUESTIONNAIRE.evaluate(
                f"{{% include 'template/domains/declared/{name}.jinja' %}}", {**given, **more}
            )
        )

    found = {
        f"src/shop/{name}": rendered(name)
        for name in ("models.py", "seeds.py", "services/__init__.py", "services/base.py")
    }
    found["src/shop/migrations/versions/0001_domain.py"] = rendered("0001_domain.py")
    for made in given["design"]["entities"]:
        found[f"src/shop/services/{made['table']}.py"] = rendered("service.py", made=made)
        found[f"tests/test_{made['table']}.py"] = rendered("test_service.py", made=made)
    return found


@pytest.mark.parametrize(
    "backend", [MESH, *(pytest.param(name, marks=lives) for name in BACKENDS if name != MESH)]
)
def test_a_project_with_odd_names_passes_its_own_check(backend: str, tmp_path: Path) -> None:
    declaration = held_by(PROFILES[backend], ODD)
    project = tmp_path / "shop"
    render(
        ROOT, project, {"project_name": "shop", "backend": backend, "domain": declaration, "asyncio": True}
    )
    Life(project, sys.executable).check()


def test_the_command_line_and_plain_copier_write_the_same(scaffold: Scaffold) -> None:
    file = SHAPES["wiki"]
    result = scaffold("new", "shop", "--no-git", "--no-lock", "--backend", GLOBAL, "--domain", str(file))
    assert result.returncode == 0, result.stderr
    data = {"project_name": "shop", "backend": GLOBAL, "domain": read(file)}
    (scaffold.place / "data.yml").write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "copier",
            "copy",
            "--defaults",
            "--quiet",
            "--data-file",
            "data.yml",
            str(ROOT),
            "other",
        ],
        cwd=scaffold.place,
        check=True,
        capture_output=True,
    )
    one, other = files(scaffold.place / "shop"), files(scaffold.place / "other")
    origins = [yaml.safe_load(found.pop(".copier-answers.yml")) for found in (one, other)]
    assert one == other
    assert [list(origin["domain"]) for origin in origins] == [list(read(file))] * 2


@pytest.mark.parametrize("shape", SHAPES)
def test_the_order_in_the_file_changes_the_order_in_the_code_and_nothing_else(shape: str) -> None:
    chance = random.Random(shape)  # noqa: S311
    declaration = read(SHAPES[shape])
    turned = {
        name: dict(chance.sample(list(fields.items()), len(fields)))
        for name, fields in chance.sample(list(declaration.items()), len(declaration))
    }
    one, other = modules(GLOBAL, declaration), modules(GLOBAL, turned)
    assert one.keys() == other.keys()
    for path in ("src/shop/services/base.py", "src/shop/services/__init__.py"):
        # Its docstring and the README take the first entity for an example.
        assert one[path].partition('"""\n')[2] == other[path].partition('"""\n')[2]
    for path, text in one.items():
        # Not seeds.py: of two tables that refer to each other, the first has rows without the reference.
        if path.endswith("models.py"):
            assert words_of(text) == words_of(other[path])


def words_of(code: str) -> list[str]:
    """Return the words of code, without those that say which of two tables is made first."""
    return sorted(
        word for word in re.findall(r"\w+", code) if word not in {"use_alter", "post_update", "True"}
    )


# Real clusters


def start(backend: str, declaration: Declaration, folder: Path) -> Life:
    """Render a project, and return it with an interpreter that has its requirements."""
    folder.chmod(0o711)
    project = folder / "shop"
    render(ROOT, project, {"project_name": "shop", "backend": backend, "domain": declaration})
    return Life(project, matrix.interpreter(project, folder / ".venv"))


@lives
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_shape_lives_on_a_cluster(backend: str, tmp_path: Path) -> None:
    declaration = held_by(PROFILES[backend], read(SHAPES[CHOSEN[backend]]))
    live(start(backend, declaration, tmp_path), declaration)


@lives
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", os.environ.get("DOMAIN_SEEDS", "1 2").split())
def test_a_random_domain_lives_on_a_cluster(backend: str, seed: str, tmp_path: Path) -> None:
    declaration = random_domain.domain(int(seed), PROFILES[backend])
    live(start(backend, declaration, tmp_path), declaration)


@lives
def test_a_database_of_the_other_order_has_what_the_models_have(tmp_path: Path) -> None:
    declaration = read(SHAPES["tickets"])
    life = start(GLOBAL, declaration, tmp_path)
    turned = {name: dict(reversed(fields.items())) for name, fields in reversed(declaration.items())}
    other = tmp_path / "turned"
    render(ROOT, other, {"project_name": "shop", "backend": GLOBAL, "domain": turned})
    try:
        life.shop("up")
        life.shop("migrate")
        shutil.copy(other / "src" / "shop" / "models.py", life.project / "src" / "shop" / "models.py")
        assert "nothing to write" in life.shop("revision", "-m", "none")
        life.shop("verify")
    finally:
        life.shop("destroy")


# Updates


@pytest.mark.parametrize("backend", [MESH, GLOBAL])
def test_a_declaration_that_grows_is_merged_and_leaves_revisions_alone(
    backend: str, checkout: Path, tmp_path: Path
) -> None:
    git(checkout, "tag", "v1.0.0")
    tmp_path.chmod(0o711)
    project = tmp_path / "shop"
    declaration = held_by(PROFILES[backend], read(SHAPES["queue"]))
    data = {"project_name": "shop", "backend": backend, "domain": declaration}
    copier.run_copy(str(checkout), project, data=data, defaults=True, quiet=True)
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "-m", "made")
    service = project / "src" / "shop" / "services" / "job.py"
    edited = service.read_text() + '\n\ndef mine() -> int:\n    """Return one."""\n    return 1\n'
    service.write_text(edited)
    git(project, "commit", "--quiet", "--all", "-m", "mine")
    versions = {path.name: path.read_bytes() for path in project.rglob("migrations/versions/*.py")}

    grown = {
        **declaration,
        "Worker": {**declaration["Worker"], "rack": "str(20)?"},
        "Lease": {"job": "-> Job?"},
    }
    data["domain"] = grown
    copier.run_update(project, data=data, defaults=True, overwrite=True, quiet=True)

    assert "    rack: Mapped[str | None]" in (project / "src/shop/models.py").read_text()
    assert "    rack: str | None = None," in (project / "src/shop/services/worker.py").read_text()
    assert (project / "src/shop/services/lease.py").is_file()
    assert (project / "tests/test_lease.py").is_file()
    assert "Lease {" in (project / "README.md").read_text()
    assert service.read_text().endswith(edited[-60:])
    assert {path.name: path.read_bytes() for path in project.rglob("migrations/versions/*.py")} == versions
    assert "<<<<<<<" not in "".join(path.read_text() for path in project.rglob("*.py"))
    if not os.environ.get("DOMAIN_LIVES"):
        return
    # A database made by the declaration before gets the difference, and no more.
    life = Life(project, matrix.interpreter(project, tmp_path / ".venv"))
    models = (project / "src/shop/models.py").read_text()
    try:
        git(project, "stash", "--quiet", "--include-untracked")
        life.shop("up")
        life.shop("migrate")
        git(project, "stash", "pop", "--quiet")
        assert (project / "src/shop/models.py").read_text() == models
        written = life.shop("revision", "-m", "racks and leases").splitlines()
        text = "".join((project / line).read_text() for line in written if line.endswith(".py"))
        made = set(re.findall(r"op\.(\w+)\(", text.partition("def downgrade")[0]))
        assert made <= {"add_column", "create_table", "create_index", "execute", "f"}, text
        assert "rack" in text
        assert "lease" in text
        life.shop("migrate")
        life.test()
        life.check()
    finally:
        life.shop("destroy")
