from __future__ import annotations

import ast
import json
import textwrap
from pathlib import Path

import pytest

from sglang_commfix.engine.errors import SourceError
from sglang_commfix.engine.fingerprint import find_scope, fingerprint, normal_form


SAMPLES = [
    "def f(a, *, b=1.5, **k): 'doc'; return a if b else {**k, 'é': 0x10}",
    "x = f'{a}{b!r:>{w}} \\N{BULLET}' 'tail', rb'y'[0:1, ...]",
    "async def g():\n async with a as b, c: yield [i async for i in d if not i]",
    "class C(B, m=D):\n  x: int = -1\n  @p.q\n  def f(self): return lambda z=1j: ~z",
    "match p:\n case {'a': [1, *r], **k} if k: pass\n case C(x=1) | None: ...",
]
RECORDED = Path(__file__).with_name("fingerprints.json")


def one(text: str) -> ast.AST:
    return ast.parse(text)


@pytest.mark.parametrize(
    "other",
    [
        "def f(x):\n    # why\n    return (x +\n        1)\n",
        "def f(x):\n\treturn x+1",
        "def f(x): return x + 0x1",
        'def f(x):\n    """Say."""\n    return x + 1',
        "def f(\n    x,\n):\n    return x + 1;",
    ],
)
def test_formatting_comments_and_docstrings_do_not_count(other: str) -> None:
    assert fingerprint(one("def f(x): return x + 1")) == fingerprint(one(other))


@pytest.mark.parametrize(
    "other",
    [
        "def f(y): return y + 1",
        "def f(x): return x + 2",
        "def f(x): return x + 1.0",
        "def f(x): return x + True",
        "def f(x): return 1 + x",
        "def f(x): 'doc'; 'text'; return x + 1",
        "def f(x) -> int: return x + 1",
        "async def f(x): return x + 1",
        "@f\ndef f(x): return x + 1",
        "def f(*x): return x + 1",
    ],
)
def test_every_other_difference_counts(other: str) -> None:
    assert fingerprint(one("def f(x): return x + 1")) != fingerprint(one(other))


@pytest.mark.parametrize(
    ("one_way", "other_way"),
    [
        ("'a' 'b'", "'ab'"),
        ("f'a' 'b'", "f'ab'"),
        ("f'{x}' ''", "f'{x}'"),
        ("'a' f'{x}' 'b' 'c'", "f'a{x}bc'"),
    ],
)
def test_joined_strings_count_as_what_they_join_to(one_way: str, other_way: str) -> None:
    assert normal_form(one(one_way)) == normal_form(one(other_way))


def test_a_number_of_any_length_can_be_compared() -> None:
    assert len(fingerprint(one(f"x = 0x{'f' * 5000}"))) == 16


def test_text_outside_ascii_is_written_in_ascii() -> None:
    assert normal_form(one("x = 'é\\u2028\U0001f600'")).isascii()


def test_code_nested_too_deeply_is_an_error_of_the_source() -> None:
    tree = ast.parse("x = 1")
    node: ast.expr = ast.Name("x", ast.Load())
    for _ in range(100_000):
        node = ast.UnaryOp(ast.Not(), node)
    tree.body[0].value = node  # type: ignore[attr-defined]
    with pytest.raises(SourceError, match="too deeply"):
        normal_form(tree)
    while isinstance(node, ast.UnaryOp):  # take it apart: freeing it is recursive, too
        node = node.operand


class TestFindScope:
    TREE = ast.parse(
        textwrap.dedent("""
        def top(): pass
        if flag:
            class Inner:
                try:
                    def method(self): pass
                finally:
                    pass
        def outer():
            def hidden(): pass
        def twice(): pass
        def twice(): pass
        match flag:
            case 1:
                def cased(): pass
        """)
    )

    @pytest.mark.parametrize(
        "name", ["top", "Inner", "Inner.method", "outer", "outer.hidden", "cased"]
    )
    def test_finds_definitions_wherever_they_stand(self, name: str) -> None:
        found = find_scope(self.TREE, name)
        assert found is not None
        assert found.name == name.rpartition(".")[2]

    @pytest.mark.parametrize("name", ["absent", "hidden", "method", "Inner.absent", "top.absent"])
    def test_finds_nothing_where_the_path_does_not_lead(self, name: str) -> None:
        assert find_scope(self.TREE, name) is None

    def test_a_name_defined_twice_is_an_error(self) -> None:
        with pytest.raises(
            SourceError, match=r"twice is defined more than once \(lines \d+, \d+\)"
        ):
            find_scope(self.TREE, "twice")


@pytest.mark.parametrize("text", SAMPLES)
def test_every_python_finds_the_fingerprint_that_cpython_3_11_found(text: str) -> None:
    assert fingerprint(ast.parse(text)) == json.loads(RECORDED.read_text())[text]


if __name__ == "__main__":
    RECORDED.write_text(
        json.dumps({t: fingerprint(ast.parse(t)) for t in SAMPLES}, indent=2) + "\n"
    )
