"""What operations says a program prints, it can print."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from page_text import cells
from pages import Installation

from sglang_commfix.run import host


ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = ROOT / "docs" / "operations.md"
TABLES = ("message", "it says", "part", "line")  # by the head of their first column
# What stands for something else: a quoted value, a number, dots, a file, or a word of these.
ANY = re.compile(
    r"(?<![\w'])'[^']*'|\b\d+(?:\.\w+)*\b|…|(?<=commfix=)\w+|\w+\.py\b|\b(?:[ABNVWX]|COMMAND|DIR|FILE|FOLDER|HOST|ID"
    r"|KEY|LOADER|MODULE|NAME|PATH|PYTHON|SCOPE|TARGET|TYPE|VALUE|VERSION)\b"
)
ELSEWHERE = {"No such file or directory"}  # said by the operating system
START, VALUE, END = "\1", "\0", "\2"


def quoted() -> list[str]:
    """What the first column of each table of messages has in backticks."""
    return [
        code.replace("\\|", "|").strip()
        for head in TABLES
        for row in cells(OPERATIONS, head)
        for _, code in re.findall(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", row[0])
    ]


# What the text of a page quotes, beside those tables.
IN_TEXT = {
    "README.md": (
        "None of the … faults that sglang-commfix … knows is here",
        "as in sglang 0.5.12.post1 where it matters",
        "Decided now: no lock knows these files",
        "like 0.5.12.post1; of the 22 files looked at 2 differ, 1 of them where it matters",
        "THE START-UP HOOK DOES NOT RUN",
    ),
    "docs/operations.md": (
        "None of the … faults that sglang-commfix … knows is here",
        "allowed although …",
        "what it puts in is there already",
        "sglang has the fix since …",
        "NOTHING IS PATCHED",
        "not in your lock: ID",
    ),
    "docs/architecture.md": (
        "None of the faults that this version knows is here",
        "sglang has the fix since 0.5.13",
    ),
    "docs/reliability.md": (
        "MODULE ran before …",
        "MODULE runs UNPATCHED: it was loaded by …",
        "MODULE runs UNPATCHED: SCOPE is NAME (FILE, line N) …",
        "FILE changed on disk …",
    ),
}


def pieces(message: str) -> list[str]:
    """The parts of a message that stand for themselves, between what stands for something else."""
    parts = [one for part in ANY.split(message) for one in re.split(r"[.:;,(] |[|()]", part)]
    bare = [part.strip(" .:;,/`'") for part in parts]
    return [part for part in bare if len(part) > 3 and part not in ELSEWHERE]


@cache
def source() -> str:
    """All text of the package's source: constants, and f-strings with marks for their values."""
    files = [*ROOT.glob("sglang_commfix/**/*.py"), *ROOT.glob("patches/*/*.py")]
    texts = [_text(node) for file in files for node in ast.walk(ast.parse(file.read_text()))]
    return " ".join(f"{START}{text}{END}" for text in texts if text)


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.ClassDef):
        return node.name
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"\s+", " ", node.value)
    if not isinstance(node, ast.JoinedStr):
        return ""
    names = [ast.unparse(one.value) for one in node.values if isinstance(one, ast.FormattedValue)]
    known = {name: getattr(host, name) for name in names if hasattr(host, name)}
    return "".join(
        str(one.value)
        if isinstance(one, ast.Constant)
        else str(known.get(ast.unparse(one.value), VALUE))  # type: ignore[attr-defined]
        for one in node.values
    )


def is_said(piece: str) -> bool:
    """Whether the source has this text, whole or put together where a value or a text ends."""
    if piece in source():
        return True
    cuts = (found.start() for found in re.finditer(" ", piece))
    return any(
        re.search(rf"{re.escape(piece[:cut])},? ?[{VALUE}{END}]", source())
        and re.search(rf"[{VALUE}{START}],? ?{re.escape(piece[cut + 1 :])}", source())
        for cut in cuts
    )


def test_the_parts_of_a_message_are_told_from_what_stands_for_something_else() -> None:
    assert len(quoted()) > 80
    assert pieces("FILE: ID edits MODULE without its digest") == ["edits", "without its digest"]
    assert pieces("SGLANG_COMMFIX_LOG='loud' is none of DEBUG, …. Nothing is applied") == [
        "SGLANG_COMMFIX_LOG=",
        "is none of DEBUG",
        "Nothing is applied",
    ]


def test_what_no_program_says_is_not_found() -> None:
    assert is_said("edits")
    assert is_said("it requires")
    assert is_said("which is refused")  # f"…, which is {decision}", and "refused"
    assert not is_said("without any digest")
    assert not is_said("which is refused again")


@pytest.mark.parametrize("message", sorted(set(quoted())), ids=str)
def test_each_message_that_operations_explains_stands_in_the_source(message: str) -> None:
    for piece in pieces(message):
        assert is_said(piece), f"{piece!r} of {message!r}"


@pytest.mark.parametrize(
    ("page", "message"), [(page, one) for page, quotes in IN_TEXT.items() for one in quotes]
)
def test_what_a_page_quotes_stands_there_and_in_the_source(page: str, message: str) -> None:
    assert message in " ".join((ROOT / page).read_text().split())
    for piece in pieces(message):
        assert is_said(piece) or is_said(piece[0].lower() + piece[1:]), f"{piece!r} of {message!r}"


def pattern(message: str) -> re.Pattern[str]:
    """A message as a regular expression: what stands for something else may be anything."""
    return re.compile(".*".join(map(re.escape, ANY.split(message))), re.DOTALL)


IMPORT = 'python -c "import sglang.srt"'
LOCK = "sglang-commfix lock -o lock"
OWN = {"SGLANG_COMMFIX": "1", "SGLANG_COMMFIX_LOCK": "lock"}
# The beginning of a message: a command that prints it, and the variables that it needs.
TRIGGERS: dict[str, tuple[str, dict[str, str]]] = {
    "SGLANG_COMMFIX='foo'": (IMPORT, {"SGLANG_COMMFIX": "foo"}),
    "SGLANG_COMMFIX='1,0'": (IMPORT, {"SGLANG_COMMFIX": "1,0"}),
    "'foo' is unknown": ("sglang-commfix status foo", {}),
    "SGLANG_COMMFIX_STRICT='maybe'": (
        IMPORT,
        {"SGLANG_COMMFIX": "1", "SGLANG_COMMFIX_STRICT": "maybe"},
    ),
    "SGLANG_COMMFIX_LOG='loud'": (IMPORT, {"SGLANG_COMMFIX": "1", "SGLANG_COMMFIX_LOG": "loud"}),
    "SGLANG_COMMFIX_ALLOW_UNKNOWN='ID'": (
        IMPORT,
        {"SGLANG_COMMFIX": "1", "SGLANG_COMMFIX_ALLOW_UNKNOWN": "ID"},
    ),
    "FILE cannot be read: No such file": (
        IMPORT,
        {"SGLANG_COMMFIX": "1", "SGLANG_COMMFIX_LOCK": "/no/such"},
    ),
    "FILE cannot be read: it is no regular file": (
        IMPORT,
        {"SGLANG_COMMFIX": "1", "SGLANG_COMMFIX_LOCK": "/tmp"},
    ),
    "FILE is not JSON": (f"echo no > lock; {IMPORT}", OWN),
    "PATH may be written by more people": (f"{LOCK}; chmod 666 lock; {IMPORT}", OWN),
    "FILE: no patch has to do with MODULE": (
        rf"""{LOCK}; sed -i 's/"modules": {{/&"sglang.srt.x": null,/' lock; {IMPORT}""",
        OWN,
    ),
    "FILE: schema is 2": (
        rf"""{LOCK}; sed -i 's/"schema": 1/"schema": 2/' lock; {IMPORT}""",
        OWN,
    ),
    "FILE cannot be written": ("sglang-commfix lock -o /no/such/lock", {}),
    "DIR contains no sglang package": ("sglang-commfix status --sglang-path /tmp", {}),
    "what Python imports as sglang is PATH, which is not": (
        "mkdir sglang; python -m sglang_commfix status",
        {"PYTHONPATH": ""},
    ),
    "-S is left out": ("sglang-commfix run -- python -S -c pass", {}),
}


@pytest.mark.releases
@pytest.mark.one_python
@pytest.mark.parametrize("start", TRIGGERS)
def test_a_message_is_printed_as_operations_has_it(start: str, tmp_path: Path) -> None:
    (message,) = (one for one in quoted() if one.startswith(start))
    command, variables = TRIGGERS[start]
    printed = Installation("0.5.11", tmp_path / "site").run(command, status=None, **variables)
    assert pattern(message).search(printed), printed
