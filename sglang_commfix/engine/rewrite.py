"""Find the anchors of edits in a source file and splice the new text in.

Matching is on syntax (:mod:`sglang_commfix.engine.fingerprint`), splicing is on text: what no edit
touches stays as it is, byte for byte. The same edits are also made on the syntax tree, and the
spliced text has to parse to exactly that tree; otherwise nothing is returned.
"""

from __future__ import annotations

import ast
import re
import textwrap
import tokenize
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sglang_commfix.engine.errors import AnchorError, SourceError
from sglang_commfix.engine.fingerprint import all_suites, find_scope, normal_form, parse


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sglang_commfix.engine.register import Edit
    from sglang_commfix.engine.source import Source

_INDENT = "    "
_ENDS = re.compile(r"[ \t\f]*;?[ \t\f]*(#[^\r\n]*)?[\r\n]*")
_SEMICOLON = re.compile(r"[ \t\f]*;")
_NO_CODE = frozenset({tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT})

# What comes first where two edits meet: text behind a statement, text before the next, the next.
_RANKS = {"after": 0, "before": 1, "replace": 2, "append": 3}


@dataclass(frozen=True)
class Anchor:
    """Where an edit's ``find`` stands: ``suite[start:stop]`` of a syntax tree."""

    suite: list[ast.stmt]
    start: int
    stop: int

    @property
    def first(self) -> ast.stmt:
        """The first statement of the anchor."""
        return self.suite[self.start]

    @property
    def last(self) -> ast.stmt:
        """The last statement of the anchor."""
        return self.suite[self.stop - 1]


@dataclass(frozen=True)
class TextSplice:
    """Put ``text`` in the place of ``source.text[start:stop]``, which nobody else may touch.

    ``anchored`` is the span of the anchor, which another edit may rely on but not change.
    """

    start: int
    stop: int
    text: str
    anchored: tuple[int, int]
    owner: str
    rank: int
    scope: str

    @property
    def growth(self) -> int:
        """How many characters it adds."""
        return len(self.text) - (self.stop - self.start)

    def collides(self, other: TextSplice) -> bool:
        """Tell whether this replaces text that ``other`` replaces or is anchored on."""
        if self.start == self.stop:
            return other.start < self.start < other.stop
        start, stop = other.anchored
        return self.start < stop and start < self.stop


def find_anchor(tree: ast.Module, edit: Edit) -> Anchor:
    """Find the one place in ``tree`` that ``edit`` changes.

    Raises:
        AnchorError: the scope is absent, or the anchor stands in it never or more than once.
        SourceError: the scope is defined more than once.

    """
    scope = find_scope(tree, edit.target.scope)
    if scope is None:
        raise AnchorError(f"there is no {edit.target}")
    anchors = anchors_in(scope, edit.anchor)
    if len(anchors) != 1:
        where = ", ".join(str(anchor.first.lineno) for anchor in anchors)
        times = f"{len(anchors)} times (lines {where})" if anchors else "nowhere"
        raise AnchorError(f"the text to be changed stands {times} in {edit.target}")
    return anchors[0]


def anchors_in(scope: ast.AST, wanted: Sequence[ast.stmt]) -> list[Anchor]:
    """Find every place in ``scope`` where the statements ``wanted`` stand, however formatted."""
    forms, kinds = _forms(wanted), [type(statement) for statement in wanted]
    return [
        Anchor(suite, start, start + len(forms))
        for suite in all_suites(scope)
        for start in range(len(suite) - len(forms) + 1)
        # The kinds first: writing out the normal form of every statement takes its time.
        if [type(node) for node in suite[start : start + len(forms)]] == kinds
        and all(normal_form(suite[start + at]) == form for at, form in enumerate(forms))
    ]


def _forms(statements: Sequence[ast.stmt]) -> list[str]:
    return [normal_form(statement) for statement in statements]


@dataclass(frozen=True)
class Change:
    """An edit, the id of the patch that it belongs to, and its place in a parsed file."""

    owner: str
    edit: Edit
    anchor: Anchor | None


class OverlapError(AnchorError):
    """Two patches want to change the same statements."""

    def __init__(self, first: str, second: str, lineno: int) -> None:
        self.patches = (first, second)
        super().__init__(f"{first} and {second} both change line {lineno}")


def placed(tree: ast.Module, owner: str, edit: Edit) -> Change:
    """Pair ``edit`` with its place in ``tree``; see :func:`find_anchor` for the errors."""
    return Change(owner, edit, None if edit.operation == "append" else find_anchor(tree, edit))


def splices_of(source: Source, changes: Sequence[Change]) -> list[TextSplice]:
    """Return what ``changes`` do to the text of ``source``, one splice for each.

    Raises:
        OverlapError: two changes touch the same text.

    """
    splices = [_splice(source, change) for change in changes]
    for index, one in enumerate(splices):
        for other in splices[index + 1 :]:
            if one.collides(other) or other.collides(one):
                lineno = source.lineno(max(one.start, other.start))
                raise OverlapError(one.owner, other.owner, lineno)
    return splices


def rewrite(
    source: Source, tree: ast.Module, changes: Sequence[Change], *, compiled: bool
) -> Source:
    """Return ``source``, whose tree is ``tree``, with ``changes`` made, in their order.

    Args:
        source: the file.
        tree: its syntax tree; the same when this returns.
        changes: edits and their places in ``tree``.
        compiled: whether to compile the result, too. Not every tree that parses compiles.

    Raises:
        OverlapError: two changes touch the same text.
        AnchorError: the text cannot be placed so that it means what the edits mean.

    """
    splices = splices_of(source, changes)
    text = source.text
    ranked = sorted(enumerate(splices), key=lambda item: (item[1].start, item[1].rank, item[0]))
    for _, splice in reversed(ranked):
        text = text[: splice.start] + splice.text + text[splice.stop :]
    result = source.with_text(text)
    try:
        _verify(source, tree, changes, splices, result)
        if compiled:
            compile(parse(result), str(source.path), "exec", dont_inherit=True)
    except (SourceError, SyntaxError, ValueError, RecursionError) as error:
        raise AnchorError(f"{source.path}: the edited text does not compile: {error}") from error
    return result


def _verify(
    source: Source,
    tree: ast.Module,
    changes: Sequence[Change],
    splices: Sequence[TextSplice],
    result: Source,
) -> None:
    """Check that each edited scope, as it stands in ``result``, is that of the edited tree.

    Splices stay within the lines of their scopes, or behind the last line. All other text is the
    same, and means the same whatever the bodies beside it hold.
    """
    with _made(changes):
        for name in dict.fromkeys(splice.scope for splice in splices if splice.scope):
            scope = find_scope(tree, name)
            if scope is None:
                raise AnchorError(f"{source.path}: there is no {name}")
            begin, end = _statement_start(source, scope)[0], source.line_end(scope)
            inside = [s for s in splices if s.scope == name or s.scope.startswith(f"{name}.")]
            others = [s for s in splices if s not in inside]
            start = begin + sum(s.growth for s in others if s.start <= begin)
            stop = start + end - begin + sum(s.growth for s in inside)
            stays = all(begin <= s.start and s.stop <= end for s in inside)
            alone = _parse_alone(result.text[start:stop])
            if not stays or [normal_form(node) for node in alone] != [normal_form(scope)]:
                raise AnchorError(
                    f"{source.path}: the edited text does not mean what the edits mean"
                )


def _parse_alone(text: str) -> list[ast.stmt]:
    """Parse lines that were cut out of a file, indented or not.

    A backslash at their end takes in the line behind them, which is blank: so it is here.
    """
    text += "\n\n"  # two, since the first may be the second half of a line end
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not text.startswith((" ", "\t", "\f")):
            return ast.parse(text).body
        (wrapper,) = ast.parse(f"if True:\n{text}").body
    return wrapper.body if isinstance(wrapper, ast.If) else []


@contextmanager
def _made(changes: Sequence[Change]) -> Iterator[None]:
    """Make ``changes`` in the tree that their anchors are of, for a while."""
    places = [(change.edit, change.anchor) for change in changes if change.anchor is not None]
    grouped = _by_suite(places)
    kept = [(suite, list(suite)) for suite, _ in grouped]
    try:
        for suite, own in grouped:
            suite[:] = _rebuilt(suite, [_piece(edit, anchor) for edit, anchor in own])
        yield
    finally:
        for suite, statements in kept:
            suite[:] = statements


def _piece(edit: Edit, anchor: Anchor) -> tuple[int, int, int, list[ast.stmt]]:
    at = anchor.stop if edit.operation == "after" else anchor.start
    stop = anchor.stop if edit.operation == "replace" else at
    return _RANKS[edit.operation], at, stop, edit.added


Place = tuple["Edit", Anchor]


def _by_suite(places: Sequence[Place]) -> list[tuple[list[ast.stmt], list[Place]]]:
    groups: dict[int, list[Place]] = {}
    for edit, anchor in places:
        groups.setdefault(id(anchor.suite), []).append((edit, anchor))
    return [(group[0][1].suite, group) for group in groups.values()]


def _rebuilt(
    suite: list[ast.stmt], pieces: Sequence[tuple[int, int, int, list[ast.stmt]]]
) -> list[ast.stmt]:
    """Put each piece (rank, start, stop, statements) in the place of ``suite[start:stop]``."""
    result: list[ast.stmt] = []
    done = 0
    for _, start, stop, added in sorted(pieces, key=lambda piece: (piece[1], piece[0])):
        result += [*suite[done:start], *added]
        done = stop
    return [*result, *suite[done:]]


def _splice(source: Source, change: Change) -> TextSplice:
    edit, anchor = change.edit, change.anchor
    rank, newline = _RANKS[edit.operation], source.newline
    if anchor is None:
        end = len(source.text)
        gap = newline * (2 if source.text.endswith(("\n", "\r")) else 3)
        text = gap + _block(edit.text, "", newline)
        if not source.text.endswith(("\n", "\r")):
            text = text.removesuffix(newline)
        return TextSplice(end, end, text, (end, end), change.owner, rank, "")
    line_start, start = _statement_start(source, anchor.first)
    end = source.end(anchor.last)
    indent = source.text[line_start:start]
    line_end = source.line_end(anchor.last)
    if not (_is_plain(source, line_start, indent) and _ENDS.fullmatch(source.text, end, line_end)):
        return _unfolded(source, change, anchor)
    block = _block(edit.text, indent, newline)
    belongs = ((start, end), change.owner, rank, edit.target.scope)
    if edit.operation == "before":
        return TextSplice(line_start, line_start, block, *belongs)
    if edit.operation == "replace":
        text = block.removesuffix(newline)[len(indent) :]
        return TextSplice(start, end, text, *belongs)
    if not source.text[:line_end].endswith(("\n", "\r")):
        block = newline + block.removesuffix(newline)
    return TextSplice(line_end, line_end, block, *belongs)


def _statement_start(source: Source, statement: ast.stmt) -> tuple[int, int]:
    """Return the offsets of the statement's line and of its first character, decorators counted."""
    decorators = getattr(statement, "decorator_list", None)
    if not decorators:
        return source.line_offset(statement.lineno), source.start(statement)
    lineno = decorators[0].lineno
    while not source.lines[lineno - 1].lstrip().startswith("@"):
        lineno -= 1
    line = source.lines[lineno - 1]
    offset = source.line_offset(lineno)
    return offset, offset + len(line) - len(line.lstrip())


def _is_plain(source: Source, line_start: int, indent: str) -> bool:
    """Tell whether a statement begins its line, and its line is not the rest of another."""
    before = source.text[:line_start].removesuffix("\n").removesuffix("\r")
    return not indent.strip() and not before.endswith("\\")


def _block(text: str, indent: str, newline: str) -> str:
    return "".join(f"{textwrap.indent(line, indent)}{newline}" for line in text.splitlines())


def _unfolded(source: Source, change: Change, anchor: Anchor) -> TextSplice:
    """Place an edit whose anchor shares its line: ``if x: a; b`` gets one line a statement."""
    begin, _ = _logical_line(source, source.start(anchor.first))
    _, end = _logical_line(source, source.start(anchor.last))
    shared = [i for i, node in enumerate(anchor.suite) if begin <= source.start(node) < end]
    first, last = shared[0], shared[-1]
    start, stop = source.start(anchor.suite[first]), source.end(anchor.suite[last])
    indent = source.text[source.line_offset(source.lineno(begin)) : begin]
    head = ""
    if start != begin:  # the suite stands on the line of its own header
        indent += "\t" if indent.endswith("\t") else _INDENT
        head = source.newline + indent
        start = len(source.text[:start].rstrip(" \t\f\\\r\n"))
    own = [source.text[source.start(node) : source.end(node)] for node in anchor.suite]
    added = _block(change.edit.text, indent, source.newline).strip(" \t\r\n")
    old = own[anchor.start : anchor.stop]
    new = {"before": [added, *old], "after": [*old, added], "replace": [added]}
    lines = [*own[first : anchor.start], *new[change.edit.operation], *own[anchor.stop : last + 1]]
    text = head + (source.newline + indent).join(lines)
    if semicolon := _SEMICOLON.match(source.text, stop):
        stop = semicolon.end()
    rank = _RANKS["replace"]
    return TextSplice(
        start, stop, text, (start, stop), change.owner, rank, change.edit.target.scope
    )


def _logical_line(source: Source, offset: int) -> tuple[int, int]:
    """Return the offsets between which the logical line with ``offset`` in it stands."""
    lines = iter([line.rstrip("\r\n") + "\n" for line in source.lines])
    begin: int | None = None
    try:
        for token in tokenize.generate_tokens(lambda: next(lines, "")):
            if token.type in _NO_CODE:
                continue
            here = source.line_offset(token.start[0]) + token.start[1]
            if begin is None:
                begin = here
            if token.type == tokenize.NEWLINE:
                if begin <= offset < here:
                    return begin, here
                begin = None
    except (tokenize.TokenError, SyntaxError) as error:
        raise SourceError(f"{source.path} cannot be split into lines: {error}") from error
    raise AnchorError(f"{source.path}: no line of code at offset {offset}")
