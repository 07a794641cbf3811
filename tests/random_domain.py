"""Random declarations, from a seed: every word of the grammar, in combinations that a person would not try."""

# ruff: noqa: E501, SIM905 - lists of words

import random
from collections.abc import Mapping
from typing import Any

Declaration = dict[str, dict[str, str]]

NOUNS = (
    "Alpha Bay Crate Depot Engine Ferry Grain Harbour Icon Jar Kettle Lamp Mirror Nest Oven Parcel Quay Rail Sail "
    "Tower Urn Valve Wagon Yard Zone Box Bus Church Baby City Day X9 R2D2 AbcDef HTTPServer BigURLCache"
).split()
FIELDS = (
    "a n x9 amount weight colour shape size_of_it when_made note note_2 remark_text long_name_with_many_parts "
    "hint code number_shown level rank mark origin aim share part stage phase owner_name kind type_of "
    "status state value_given name title body row column_1 values_held query count total index_of data item "
    "items object path result"
).split()
TYPES = (
    "str", "str(1)", "str(7)", "str(40)", "str(200)", "text", "int", "decimal(1, 0)", "decimal(2, 2)", "decimal(10, 2)",
    "decimal(38, 12)", "float", "bool", "date", "time", "datetime", "duration", "uuid", "json", "bytes",
)  # fmt: skip
DEFAULTS = {
    "str": [
        "x",
        "it's",
        'say "so"',
        "{{ x }}",
        "{% raw %}",
        "50%",
        "%(id)s",
        "a:b :c",
        "back\\slash",
        "`tick`",
        "é 👍 日",
        "$1",
        "#",
    ],
    "text": ["one line", "''", '"', ":name", "\\n", "{0} {x!r}", "--", "/* */"],
    "int": ["0", "1", "-7", "999999999999999999"],
    "decimal(10, 2)": ["0", "0.50", "-12.5", "99999999.99"],
    "float": ["0", "0.5", "-1.25", "1000000"],
    "bool": ["true", "false"],
    "date": ["today"],
    "datetime": ["now"],
}
WORDS = (
    "held paid on-hold sold_out None async class name value X9 a mro self title count index red Green".split()
)
RANGES = ("int", "decimal(8, 2)", "float", "date", "datetime")


def domain(seed: int, profile: Mapping[str, Any], *, entities: int = 0) -> Declaration:
    """Return a declaration that the backend of `profile` can hold.

    Args:
        seed: seed of the choice; the same seed gives the same declaration.
        profile: facts of the backend.
        entities: number of entities; 0: 1 to 7.
    """
    chance = random.Random(seed)  # noqa: S311 - the seed is printed
    names = chance.sample(NOUNS, min(entities or chance.randint(1, 7), len(NOUNS)))
    names += [f"Entity{number}Of" for number in range(entities - len(names))]
    made: Declaration = {}
    for place, name in enumerate(names):
        fields = chance.sample(FIELDS, chance.randint(1, 9))
        made[name] = {field: _field(chance, names, place, profile) for field in fields}
    return made


def _field(chance: random.Random, names: list[str], place: int, profile: Mapping[str, Any]) -> str:
    unique = " unique" if profile["unique_is_global"] else ""
    deferrable = " deferrable" if profile["constraints_are_deferrable"] else ""
    optional = chance.choice(["", "", "?"])
    match chance.randint(0, 9):
        case 0 | 1 if place:
            # A required reference leads to an entity before, so that no circle is.
            words = chance.choice(["", "", "", unique]) + chance.choice(["", "", deferrable])
            return f"-> {chance.choice(names[:place])}{optional}{words}"
        case 2:
            return f"-> {chance.choice(names)}?{chance.choice(['', '', unique, deferrable])}"
        case 3 if len(names) > 1:
            return f"<-> {chance.choice(names[:place] + names[place + 1 :])}"
        case 4:
            values = chance.sample(WORDS, chance.randint(1, 9))
            default = chance.choice(["", f" = {chance.choice(values)}"]) if not optional else ""
            return f"[{', '.join(values)}]{optional}{chance.choice(['', ' index'])}{default}"
        case 5:
            kind = chance.choice(RANGES)
            return f"from {kind} to {kind}{' ?' if optional else ''}"
    kind = chance.choice(TYPES)
    words = chance.choice(["", "", " index"]) if kind != "json" else ""
    defaults = DEFAULTS.get(kind.partition("(")[0] if kind == "str(200)" else kind)
    default = f" = {chance.choice(defaults)}" if defaults and not optional and chance.random() < 0.5 else ""
    return f"{kind}{optional}{words}{default}"
