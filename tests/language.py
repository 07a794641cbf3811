"""Rules of language that a program can check: length of lines, openings of sentences, moods of docstrings.

CONTRIBUTING.md states the rules. Ruff's D401 covers less: it accepts "Whether", "How", "Rows" and "Every".
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

LONGEST = 120

# Openings of clauses without a head ("What a node stores") and of phrases without a noun ("Of the servers").
HEADLESS = re.compile(
    r"(?:What|Whatever|Where|Wherever|Who|Whoever|Whom|Whomever|Whose|Which|Whichever|Whether|How|Why|That|Of)\b"
)
# The docstring of a constant is a noun phrase; these open none.
PREPOSITIONS = re.compile(r"(?:About|As|At|Before|By|For|From|In|Of|On|That|To|Under|Until|With|Without)\b")

# Imperatives that open the docstring of a function. Add the verb that is missing.
VERBS = frozenset(
    # A list of words reads better as text.
    """
    accept acquire add adopt advance allow analyse answer append apply ask assert assign attach await back
    begin bind block book break bring build bump cache call cancel carry cast catch change check choose claim
    classify clear clone close collect combine commit compare compile complete compute configure connect
    consume convert copy count create cut deactivate decide declare decode decorate delete deliver derive
    describe destroy detach detect determine disable discard disconnect dispatch display dispose do downgrade
    drain drop dump emit empty enable encode end enqueue ensure enter escape estimate evaluate execute exit
    expect expire explain export extend extract fail fall fetch fill filter find finish flush fold follow
    force fork format forward free freeze gather generate get give go group grow guard hand handle hang hash
    hide hold identify ignore import include increase increment index initialize insert inspect install
    interrupt issue iterate join keep kill label launch leave let limit link list listen load locate lock log
    look make map mark match measure merge migrate mount move name negotiate normalize note notify number
    offer open order park parse partition pass pause perform pick pin place plan poll pop populate prefer
    prepare preserve prevent print probe process produce promote propagate prove provide provision pull push
    put query quote raise read rebuild receive record recover redirect refer reflect refresh refuse register
    reject rejoin relay release reload remove rename render repair repeat replace replay replicate report
    request require reserve reset resolve restart restore resume retain retry return reuse reverse revert
    revoke rewrite roll rotate round route run sample save say scan seed select send serve set shorten show
    shut signal simulate skip sleep sort split spread stand start stop store strip submit substitute sum
    suspend swallow swap switch synchronize take teach tell terminate test time touch trace track transfer
    translate trigger trim truncate try turn undo uninstall unlink unlock unpack unregister update upgrade
    upsert use validate verify visit wait walk warn watch withdraw work wrap write yield
    """.split()  # noqa: SIM905
)

SENTENCE = re.compile(r"(?<=[.!?])[\"')`]*\s+(?=[\"'(`*]*[A-Z])")
BULLET = re.compile(r"\s*(?:[-*•]|\d+\.)\s+")
# In the sections of Google's style, the description of an argument is a sentence of its own.
ARGUMENT = re.compile(r"\s*\*{0,2}\w+(?: \([^)]*\))?:\s+")
SECTION = re.compile(r"\s*(?:Args|Attributes|Raises|Returns|Yields):$")
WORDS_OF_A_SENTENCE = 3

# Files whose comments begin with a hash.
HASHED = (
    ".conf",
    ".dockerignore",
    ".env.example",
    ".gitattributes",
    ".gitignore",
    ".ini",
    ".sh",
    ".toml",
    ".yaml",
    ".yml",
    "Makefile",
)
TAG = re.compile(r"(?<!\$)\{\{ |\{% ")


@dataclass(frozen=True, order=True)
class Complaint:
    """A place in a file, and the rule that is broken there."""

    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.line}: {self.rule}: {self.text}"


def complaints(name: str, text: str) -> list[Complaint]:
    """Return everything to complain about in the file of that name."""
    if name.startswith("template/") and (name.endswith(".jinja") or TAG.search(text)):
        # Only its own comments: the rest is read as it is rendered.
        return sorted(set(jinja(text)))
    found = set(long_lines(name, text))
    if name.endswith(".py"):
        found |= set(python(text, are_texts_read="tests/" not in name))
    elif name.endswith(".md"):
        found |= set(markdown(text))
    elif name.endswith(".sql"):
        found |= set(comments(text, "--"))
    elif name.endswith(HASHED):
        found |= set(comments(text, "#"))
    return sorted(found)


def long_lines(name: str, text: str) -> Iterator[Complaint]:
    """Yield the lines that are too long; rows of a Markdown table and URLs cannot be broken."""
    for number, line in enumerate(text.splitlines(), 1):
        shown = line
        if name.endswith(".md"):
            shown = "" if line.lstrip().startswith("|") else re.sub(r"https?://[^\s)>]+", "", line)
        if len(shown) > LONGEST:
            yield Complaint(number, f"{len(line)} characters", line.strip()[:60] + "…")


def python(text: str, *, are_texts_read: bool) -> Iterator[Complaint]:
    """Yield what is wrong with the docstrings and comments of a module, and with its messages.

    The texts of a test are data, so it is read without them.
    """
    tree = ast.parse(text)
    documented = set[ast.AST]()
    for node in ast.walk(tree):
        yield from _docstrings(node, documented)
    if are_texts_read:
        yield from _messages(tree, documented)
    for line, block in _python_comments(text):
        yield from sentences(block, line)


def _messages(tree: ast.Module, documented: set[ast.AST]) -> Iterator[Complaint]:
    """Yield the texts without a head, other than docstrings; SQL does not match, being in capitals."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node not in documented:
            value = _text(node)
            if value is not None and _is_headless(value):
                yield Complaint(node.lineno, "headless text", _shown(value))


def _docstrings(node: ast.AST, documented: set[ast.AST]) -> Iterator[Complaint]:
    """Yield what is wrong with the docstrings that a node has, and add these to `documented`."""
    body = getattr(node, "body", None)
    if not isinstance(body, list):
        return
    for position, statement in enumerate(body):
        value = _text(statement.value) if isinstance(statement, ast.Expr) else None
        if value is None:
            continue
        documented.add(statement.value)
        yield from sentences(value, statement.lineno)
        is_order = position == 0 and _wants_an_order(node)
        if is_order and not _opens_with_a_verb(value):
            yield Complaint(statement.lineno, "no verb first", _shown(value))
        is_constant = position and isinstance(body[position - 1], ast.Assign | ast.AnnAssign)
        if is_constant and PREPOSITIONS.match(value):
            yield Complaint(statement.lineno, "constant without a noun", _shown(value))


def _text(node: ast.AST) -> str | None:
    """Return the value of a string; None for any other expression."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, str) else None


def _wants_an_order(node: ast.AST) -> bool:
    """Tell whether a node is a function other than a property (named by a noun) and a test (a claim)."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("test_"):
        return False
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return not any("property" in name or name == "setter" for name in decorators)


def _opens_with_a_verb(text: str) -> bool:
    """Tell whether a docstring begins as an order; "Name of …" and "List of …" do not."""
    first, second = [*re.split(r"\W+", text.strip().lower(), maxsplit=2), ""][:2]
    return first in VERBS and (second != "of" or first in {"dispose", "tell", "warn"})


def _python_comments(text: str) -> Iterator[tuple[int, str]]:
    """Yield comments with their first line; those on consecutive lines of their own are one."""
    start, column, block = 0, -1, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, at = token.start
        words = token.string.lstrip("#").strip()
        own = not token.line[:at].strip()
        if block and own and at == column and line == start + len(block):
            block.append(words)
            continue
        if block:
            yield start, "\n".join(block)
        start, column, block = line, at if own else -1, [words]
    if block:
        yield start, "\n".join(block)


def jinja(text: str) -> Iterator[Complaint]:
    """Yield what is wrong with the comments of a template."""
    for found in re.finditer(r"\{#-?(.*?)-?#\}", text, re.DOTALL):
        yield from sentences(found[1], text.count("\n", 0, found.start()) + 1)


def comments(text: str, mark: str) -> Iterator[Complaint]:
    """Yield what is wrong with comments that begin with `mark` on a line of their own."""
    start, block = 0, list[str]()
    for number, line in enumerate([*text.splitlines(), ""], 1):
        found = re.match(rf"\s*{re.escape(mark)}+ (.*)", line)
        if found:
            start = start if block else number
            block.append(found[1])
        elif block:
            yield from sentences("\n".join(block), start)
            block = []


def markdown(text: str) -> Iterator[Complaint]:
    """Yield what is wrong with the paragraphs, items and cells of a document, headings aside."""
    start, block, fenced = 0, list[str](), False
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and line.lstrip().startswith("|"):
            for cell in line.strip(" |").split("|"):
                yield from sentences(cell, number)
        elif not fenced and line.strip() and not line.startswith("#"):
            start = start if block else number
            block.append(line)
            continue
        if block:
            yield from sentences("\n".join(block), start)
            block = []


def sentences(text: str, line: int) -> Iterator[Complaint]:
    """Yield the sentences of a text that open without a head; questions may."""
    for begin, part in _parts(text):
        at = line + begin
        for sentence in SENTENCE.split(part):
            words = " ".join(sentence.split())
            if _is_headless(words[:1].upper() + words[1:]):
                yield Complaint(at, "headless sentence", _shown(words))
            at += sentence.count("\n")


def _is_headless(sentence: str) -> bool:
    """Tell whether a sentence opens without a head, and is neither a question nor a word or two."""
    words = sentence.strip("\"'()*` \n")
    is_sentence = len(words.split()) >= WORDS_OF_A_SENTENCE and not words.endswith("?")
    return is_sentence and bool(HEADLESS.match(words))


def _parts(text: str) -> Iterator[tuple[int, str]]:
    """Yield the paragraphs and items of a text, each with the number of its first line in it."""
    start, part, in_section = 0, list[str](), False
    for number, line in enumerate([*text.split("\n"), ""]):
        is_title = bool(SECTION.match(line))
        in_section = in_section or is_title
        item = BULLET.match(line) or (ARGUMENT.match(line) if in_section else None)
        if part and (item or is_title or not line.strip()):
            yield start, "\n".join(part)
            part = []
        if line.strip() and not is_title:
            start = start if part else number
            part.append(line[item.end() :] if item else line)


def _shown(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"
