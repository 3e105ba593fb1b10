"""The words of the code: names and docstrings as an engineer of the field would write them, read from the AST."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for package in ("milcore", "components", "pipeline") for path in (ROOT / package).rglob("*.py"))

RIDDLES = {"said", "its", "hand", "found", "told", "held", "seen"}
OPENINGS = {"What", "Whether", "How", "Who", "Where"}
WORDS_IN_A_FIRST_LINE = 14
# participles that do not end in -ed
PARTICIPLES = {
    "begun", "built", "chosen", "cut", "drawn", "found", "given", "held", "hidden", "kept", "known", "left", "lost",
    "made", "meant", "put", "said", "seen", "sent", "shown", "spread", "sunk", "taken", "thrown", "told", "written",
}  # fmt: skip
ADJECTIVES = {
    "absent", "bad", "big", "clean", "deep", "dense", "even", "fast", "flat", "free", "full", "good", "large", "live",
    "local", "missing", "new", "old", "open", "plain", "raw", "ready", "remote", "safe", "short", "simple", "slow",
    "small", "sparse", "stale", "usable", "valid", "warm", "whole", "wide",
}  # fmt: skip
# nouns that end in -ed, and the two adjectives that name a field's idea
NOUNS = {"seed", "frozen", "synthetic", "bed", "speed", "need", "embed"}

# what breaks a rule, and why it may; at most 20
EXCEPTIONS: dict[str, str] = {}

ERRORS = {"ClusterError", "InputError", "MILError", "StoreError", "ValueError"}
LIST_OF_WHAT_IS_ALLOWED = re.compile(r"expected .*got .*allowed:", re.DOTALL)


def head(name: str) -> str:
    """The last word of a CamelCase or snake_case name: what the name says the thing is."""
    return re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name.strip("_"))[-1].lower()


def names_no_thing(name: str) -> bool:
    """A past participle or a bare adjective in place of a noun."""
    word = head(name)
    if word in NOUNS or name.startswith("__"):
        return False
    return word.endswith("ed") or word in PARTICIPLES or word in ADJECTIVES


def names_in(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Variables, arguments, fields and attributes that a file gives names to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node
        elif isinstance(node, ast.arg):
            yield node.arg, node
        elif isinstance(node, ast.Attribute):
            yield node.attr, node


def riddles_in(tree: ast.AST) -> list[str]:
    return [f"{node.lineno}: {name}" for name, node in names_in(tree) if name.strip("_") in RIDDLES]  # type: ignore[attr-defined]


def docstrings_in(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text, node.body[0].lineno


def first_line(text: str) -> str:
    return text.split("\n\n", maxsplit=1)[0].replace("\n", " ")


def faults_of(text: str) -> list[str]:
    """The rules that the first line of a docstring breaks."""
    line = first_line(text)
    opens = re.match(r"\w*", line).group() in OPENINGS  # type: ignore[union-attr]
    words = len(line.split())
    return [
        *([f"opens with {line.split()[0]}"] if opens else []),
        *(
            [f"{words} words in its first line, allowed {WORDS_IN_A_FIRST_LINE}"]
            if words > WORDS_IN_A_FIRST_LINE
            else []
        ),
    ]


def text_of(message: ast.expr) -> str:
    """The text of a message, with the source of each placeholder in braces."""
    match message:
        case ast.Constant():
            return str(message.value)
        case ast.JoinedStr():
            return "".join(map(text_of, message.values))
        case ast.BinOp():
            return text_of(message.left) + text_of(message.right)
        case ast.FormattedValue():
            conversion = f"!{chr(message.conversion)}" if message.conversion > 0 else ""
            return f"{{{ast.unparse(message.value)}{conversion}}}"
        case _:
            return f"{{{ast.unparse(message)}}}"


def error_texts_in(tree: ast.AST) -> list[str]:
    """Texts of the errors that are made in a file, raised at once or returned to be raised."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    return [text_of(call.args[0]) for call in calls if ast.unparse(call.func).rpartition(".")[2] in ERRORS]


def lists_without_form(tree: ast.AST) -> list[str]:
    """Error texts that list what is allowed, but not what was expected and got before it."""
    texts = [text for text in error_texts_in(tree) if "allowed:" in text]
    return [text for text in texts if not LIST_OF_WHAT_IS_ALLOWED.search(text)]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_variable_argument_or_attribute_is_a_riddle(path: Path) -> None:
    assert riddles_in(ast.parse(path.read_text())) == []


@pytest.mark.parametrize("path", FILES, ids=str)
def test_modules_and_classes_are_named_by_nouns(path: Path) -> None:
    classes = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    module = [] if path.stem.startswith("__") else [path.stem]
    assert [name for name in [*module, *classes] if names_no_thing(name) and name not in EXCEPTIONS] == []


@pytest.mark.parametrize("path", FILES, ids=str)
def test_docstrings_say_at_once_what_a_thing_is_or_does(path: Path) -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {fault}: {first_line(text)[:60]!r}"
        for text, line in docstrings_in(ast.parse(path.read_text()))
        for fault in faults_of(text)
        if first_line(text) not in EXCEPTIONS
    ]
    assert faults == []


def test_exceptions_are_few_each_has_a_reason_and_is_needed() -> None:
    assert len(EXCEPTIONS) <= 20
    assert all(EXCEPTIONS.values())
    trees = [ast.parse(path.read_text()) for path in FILES]
    names = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    lines = {first_line(text) for tree in trees for text, _ in docstrings_in(tree)}
    texts = {text for tree in trees for text in lists_without_form(tree)}
    assert [name for name in EXCEPTIONS if name not in names | lines | texts | {path.stem for path in FILES}] == []


@pytest.mark.parametrize("path", [path for path in FILES if path.is_relative_to(ROOT / "milcore")], ids=str)
def test_an_error_that_lists_what_is_allowed_says_what_was_expected_and_got(path: Path) -> None:
    assert [text for text in lists_without_form(ast.parse(path.read_text())) if text not in EXCEPTIONS] == []


@pytest.mark.parametrize(
    ("code", "texts"),
    [
        ("raise InputError(f'bag holds {low}; allowed: 0 to {high}')", ["bag holds {low}; allowed: 0 to {high}"]),
        ("raise errors.StoreError('a: got 1; ' + f'allowed: {x!r}')", ["a: got 1; allowed: {x!r}"]),
        ("raise ValueError('a: got 1, expected 2; allowed: 2')", ["a: got 1, expected 2; allowed: 2"]),
        ("def missing(): return ClusterError('allowed: 2; expected 2, got 1')", ["allowed: 2; expected 2, got 1"]),
        ("raise MILError(f'a: expected a number, got {x!r}; allowed: 2') from None", []),
        ("raise InputError('run milcore ingest first')", []),
        ("raise SlideError('level 1 of a plain image; allowed: 0')", []),
    ],
)
def test_a_list_of_what_is_allowed_without_the_rest_is_noticed(code: str, texts: list[str]) -> None:
    assert lists_without_form(ast.parse(code)) == texts


@pytest.mark.parametrize(
    ("code", "faults"),
    [
        ("said = 1", 1),
        ("def f(its): ...", 1),
        ("for hand in []: self.found = hand", 2),
        ("x = [told for told in y if told.held]", 2),
        ("hands = findings = 1", 0),
    ],
)
def test_riddles_are_noticed_wherever_a_name_is_given(code: str, faults: int) -> None:
    assert len(riddles_in(ast.parse(code))) == faults


@pytest.mark.parametrize("name", ["Measured", "opened", "_Kept", "Remote", "leave_told", "TilesDrawn"])
def test_a_participle_or_an_adjective_is_no_name(name: str) -> None:
    assert names_no_thing(name)


@pytest.mark.parametrize(
    "name", ["frozen", "synthetic", "EncodedSlide", "pooling", "OpenSlide", "FrozenEncoder", "Seed"]
)
def test_nouns_are_names(name: str) -> None:
    assert not names_no_thing(name)


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("What a slide is.", 1),
        ("How it ends\nin two lines.\n\nMore.", 1),
        ("Whether " + "word " * 14, 2),
        ("One two three four five six seven eight nine ten eleven twelve thirteen fourteen.", 0),
        ("One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen.", 1),
        ("Whatever it is.", 0),
    ],
)
def test_first_lines_are_measured(text: str, faults: int) -> None:
    assert len(faults_of(text)) == faults
