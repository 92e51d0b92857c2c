"""Ways to change Python source: those that mean nothing, and those that mean something."""

from __future__ import annotations

import ast
import io
import tokenize
from itertools import pairwise
from typing import TYPE_CHECKING

from sglang_commfix.engine.fingerprint import Definition, find_scope, suites


if TYPE_CHECKING:
    import random


def _logical_line_starts(text: str) -> list[int]:
    """Numbers (from 0) of the lines that begin a statement, so that lines may be put before them."""
    starts = []
    fresh = True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NEWLINE:
            fresh = True
        elif fresh and token.type not in {
            tokenize.NL,
            tokenize.COMMENT,
            tokenize.INDENT,
            tokenize.DEDENT,
            tokenize.ENDMARKER,
        }:
            starts.append(token.start[0] - 1)
            fresh = False
    return starts


def comments_and_blank_lines(text: str, chance: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    starts = set(_logical_line_starts(text))
    result = []
    for number, line in enumerate(lines):
        if number in starts and chance.random() < 0.2:
            indent = " " * chance.randrange(9)
            result.append(
                chance.choice(["\n", f"{indent}# a note: if x:\n", "\x0c\n", "# é \u2028\n"])
            )
        result.append(line)
    return "".join(result)


def comments_behind_statements(text: str, chance: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NEWLINE and chance.random() < 0.2:
            row = token.start[0] - 1
            if "#" not in lines[row]:
                lines[row] = lines[row].rstrip("\n") + "  # behind; it\n"
    return "".join(lines)


def windows_line_ends(text: str, _chance: random.Random) -> str:
    return text.replace("\n", "\r\n")


def no_final_newline(text: str, _chance: random.Random) -> str:
    return text.rstrip("\r\n")


def tabs(text: str, _chance: random.Random) -> str:
    """Indent with tabs; lines inside brackets and strings keep what they have."""
    starts = set(_logical_line_starts(text))
    lines = []
    for number, line in enumerate(text.splitlines(keepends=True)):
        blank = len(line) - len(line.lstrip(" "))
        deep = number in starts and blank % 4 == 0
        lines.append("\t" * (blank // 4) + line.lstrip(" ") if deep else line)
    return "".join(lines)


def unparsed(text: str, _chance: random.Random) -> str:
    """Other quotes, brackets and line breaks: what the standard library makes of the tree."""
    return ast.unparse(ast.parse(text)) + "\n"


def parenthesised_and_split(text: str, chance: random.Random) -> str:
    """Break lines behind commas inside brackets."""
    result = []
    depth = 0
    position = (1, 0)
    lines = text.splitlines(keepends=True)
    inside_f_string = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        name = tokenize.tok_name[token.type]
        inside_f_string += (name == "FSTRING_START") - (name == "FSTRING_END")
        for row in range(position[0], token.start[0] + 1):
            line = lines[row - 1] if row <= len(lines) else ""
            begin = position[1] if row == position[0] else 0
            end = token.start[1] if row == token.start[0] else len(line)
            result.append(line[begin:end])
        result.append(_exact(lines, token))
        position = token.end
        if token.type == tokenize.OP and not inside_f_string:
            depth += (token.string in "([{") - (token.string in ")]}")
            if token.string == "," and depth > 0 and chance.random() < 0.3:
                result.append("  # split\n" if chance.random() < 0.5 else "\n")
    return "".join(result)


def _exact(lines: list[str], token: tokenize.TokenInfo) -> str:
    (first, begin), (last, end) = token.start, token.end
    if first > len(lines):
        return ""
    if first == last:
        return lines[first - 1][begin:end]
    return "".join([lines[first - 1][begin:], *lines[first : last - 1], lines[last - 1][:end]])


def joined_statements(text: str, chance: random.Random) -> str:
    """Put simple statements on one line, and one-line suites behind their header."""
    tree = ast.parse(text)
    lines = text.splitlines()
    drop: dict[int, str] = {}
    for node in ast.walk(tree):
        for suite in suites(node):
            for one, two in pairwise(suite):
                simple = all(not list(suites(s)) and s.lineno == s.end_lineno for s in (one, two))
                near = two.lineno - one.lineno == 1 and "#" not in lines[one.lineno - 1]
                if simple and near and one.lineno not in drop and chance.random() < 0.5:
                    drop[two.lineno] = "; "
            only = suite[0]
            if isinstance(node, ast.If) and suite is node.body and len(suite) == 1:
                one_line = not list(suites(only)) and only.lineno == only.end_lineno
                header = lines[only.lineno - 2].rstrip()
                if one_line and header.endswith(":") and chance.random() < 0.7:
                    drop[only.lineno] = " "
    result: list[str] = []
    for number, line in enumerate(lines, 1):
        if number in drop:
            result[-1] += drop[number] + line.lstrip()
        else:
            result.append(line)
    return "\n".join(result) + "\n"


FORMATTERS = [
    comments_and_blank_lines,
    comments_behind_statements,
    windows_line_ends,
    no_final_newline,
    tabs,
    unparsed,
    parenthesised_and_split,
    joined_statements,
]


def _scope(tree: ast.Module, name: str) -> Definition:
    scope = find_scope(tree, name)
    assert scope is not None
    return scope


def _suite(scope: Definition, chance: random.Random) -> list[ast.stmt]:
    return chance.choice([suite for node in ast.walk(scope) for suite in suites(node)])


def rename(scope: Definition, chance: random.Random) -> None:
    node = chance.choice([n for n in ast.walk(scope) if isinstance(n, ast.Name | ast.Attribute)])
    if isinstance(node, ast.Name):
        node.id += "_"
    else:
        node.attr += "_"


def change_a_constant(scope: Definition, chance: random.Random) -> None:
    strings = [n for n in ast.walk(scope) if isinstance(n, ast.JoinedStr)]
    parts = [part for string in strings for part in string.values]
    constants = [n for n in ast.walk(scope) if isinstance(n, ast.Constant) and n not in parts]
    if constants:
        node = chance.choice(constants)
        node.value = (node.value, 1) if isinstance(node.value, tuple) else 12345


def delete_a_statement(scope: Definition, chance: random.Random) -> None:
    suite = _suite(scope, chance)
    suite.pop(chance.randrange(len(suite)))
    if not suite:
        suite.append(ast.Pass())


def duplicate_a_statement(scope: Definition, chance: random.Random) -> None:
    suite = _suite(scope, chance)
    index = chance.randrange(len(suite))
    suite.insert(index, suite[index])


def swap_statements(scope: Definition, chance: random.Random) -> None:
    suite = _suite(scope, chance)
    if len(suite) > 1:
        index = chance.randrange(len(suite) - 1)
        suite[index : index + 2] = [suite[index + 1], suite[index]]


def wrap_a_statement(scope: Definition, chance: random.Random) -> None:
    suite = _suite(scope, chance)
    index = chance.randrange(len(suite))
    wrapper = ast.If(ast.Constant(chance.choice([True, False])), [suite[index]], [])
    suite[index] = wrapper


def insert_a_statement(scope: Definition, chance: random.Random) -> None:
    suite = _suite(scope, chance)
    text = chance.choice(["return", "x = 1", "self = None", "raise ValueError", "global os"])
    suite.insert(chance.randrange(len(suite) + 1), ast.parse(text).body[0])


def negate_a_condition(scope: Definition, chance: random.Random) -> None:
    tests = [node for node in ast.walk(scope) if isinstance(node, ast.If | ast.IfExp)]
    if tests:
        node = chance.choice(tests)
        node.test = ast.UnaryOp(ast.Not(), node.test)


def add_a_parameter(scope: Definition, _chance: random.Random) -> None:
    if not isinstance(scope, ast.ClassDef):
        scope.args.kwonlyargs.append(ast.arg("more"))
        scope.args.kw_defaults.append(ast.Constant(None))


def add_a_decorator(scope: Definition, _chance: random.Random) -> None:
    scope.decorator_list.insert(0, ast.Name("staticmethod", ast.Load()))


MUTATORS = [
    rename,
    change_a_constant,
    delete_a_statement,
    duplicate_a_statement,
    swap_statements,
    wrap_a_statement,
    insert_a_statement,
    negate_a_condition,
    add_a_parameter,
    add_a_decorator,
]


def mutated(text: str, scope: str, mutators: list[object], chance: random.Random) -> str:
    """Change the function ``scope`` of ``text``; its other lines stay as they are."""
    tree = ast.parse(text)
    node = _scope(tree, scope)
    start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    end = node.end_lineno
    for mutator in mutators:
        mutator(node, chance)  # type: ignore[operator]
    lines = text.splitlines(keepends=True)
    indent = " " * node.col_offset
    fresh = ast.unparse(ast.fix_missing_locations(node)).splitlines()
    lines[start - 1 : end] = [f"{indent}{line}\n" for line in fresh]
    return "".join(lines)
