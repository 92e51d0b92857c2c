from __future__ import annotations

from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from sglang_commfix.engine.errors import AnchorError, SourceError
from sglang_commfix.engine.fingerprint import parse
from sglang_commfix.engine.register import Edit, Target
from sglang_commfix.engine.rewrite import OverlapError, placed, rewrite
from sglang_commfix.engine.source import Source


def edit(operation: str, find: str, text: str, scope: str = "f") -> Edit:
    return Edit(Target("m", scope), operation, find, text, SpecifierSet(), ())  # type: ignore[arg-type]


def applied(text: str | bytes, *edits: Edit) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    source = Source.from_bytes(Path("m.py"), raw)
    tree = parse(source)
    changes = [placed(tree, f"patch{number}", one) for number, one in enumerate(edits)]
    return rewrite(source, tree, changes, compiled=True).raw


AFTER = edit("after", "a = 1\n", "if x:\n    return\n")
BEFORE = edit("before", "a = 1\n", "if x:\n    return\n")
REPLACE = edit("replace", "a = 1\n", "a = 2\nb = 3\n")


class TestPlacing:
    def test_new_text_takes_the_indentation_of_its_anchor(self) -> None:
        text = "class C:\n    def f(self):\n        a = 1  # one\n        return a\n"
        assert applied(text, edit("after", "a = 1\n", "if x:\n    return\n", "C.f")).decode() == (
            "class C:\n    def f(self):\n        a = 1  # one\n        if x:\n            return\n"
            "        return a\n"
        )

    def test_before_goes_between_the_comment_above_and_the_anchor(self) -> None:
        text = "def f():\n    # about a\n    a = 1\n"
        assert applied(text, BEFORE).decode() == (
            "def f():\n    # about a\n    if x:\n        return\n    a = 1\n"
        )

    def test_replace_keeps_the_comment_behind_the_anchor(self) -> None:
        assert applied("def f():\n    a = 1  # one\n", REPLACE) == (
            b"def f():\n    a = 2\n    b = 3  # one\n"
        )

    def test_an_anchor_of_several_statements_is_replaced_with_what_stands_between(self) -> None:
        text = "def f():\n    a = 1\n\n    # gap\n    b = 2\n    c = 3\n"
        change = edit("replace", "a = 1\nb = 2\n", "z = 0\n")
        assert applied(text, change) == b"def f():\n    z = 0\n    c = 3\n"

    def test_before_a_decorated_definition_is_above_its_decorators(self) -> None:
        text = "def f():\n    @d(\n        1)\n    @e\n    def g(): pass\n"
        change = edit("before", "@d(1)\n@e\ndef g(): pass\n", "a = 1\n")
        assert applied(text, change) == (
            b"def f():\n    a = 1\n    @d(\n        1)\n    @e\n    def g(): pass\n"
        )

    def test_an_anchor_in_a_nested_suite_is_found(self) -> None:
        text = "def f():\n    try:\n        pass\n    finally:\n        a = 1\n"
        assert b"        a = 2\n        b = 3\n" in applied(text, REPLACE)

    @pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
    def test_new_lines_end_as_the_files_lines_do(self, newline: str) -> None:
        text = newline.join(["def f():", "    a = 1", "    return", ""])
        expected = ["def f():", "    a = 1", "    if x:", "        return", "    return", ""]
        assert applied(text, AFTER).decode() == newline.join(expected)

    def test_a_file_without_a_final_newline_stays_without_one(self) -> None:
        assert applied("def f():\n    a = 1", AFTER) == (
            b"def f():\n    a = 1\n    if x:\n        return"
        )

    def test_tabs_stay_tabs(self) -> None:
        text = "def f():\n\tif y:\n\t\ta = 1\n"
        assert applied(text, BEFORE) == b"def f():\n\tif y:\n\t\tif x:\n\t\t    return\n\t\ta = 1\n"

    def test_an_encoding_cookie_is_obeyed_and_kept(self) -> None:
        raw = "# -*- coding: latin-1 -*-\ndef f():\n    s = 'é'; t = 'ü'\n    a = 1\n".encode(
            "latin-1"
        )
        assert applied(raw, REPLACE) == raw.replace(b"a = 1", b"a = 2\n    b = 3")

    def test_a_byte_order_mark_is_kept(self) -> None:
        raw = b"\xef\xbb\xbfdef f():\n    a = 1\n"
        assert applied(raw, REPLACE) == b"\xef\xbb\xbfdef f():\n    a = 2\n    b = 3\n"

    def test_text_outside_ascii_before_the_anchor_does_not_shift_it(self) -> None:
        text = "def f():\n    s = 'é\U0001f600'; a = 1\n    return s\n"
        assert applied(text, REPLACE).decode() == (
            "def f():\n    s = 'é\U0001f600'\n    a = 2\n    b = 3\n    return s\n"
        )

    def test_form_feeds_and_odd_line_separators_inside_strings_do_not_shift_lines(self) -> None:
        text = "x = 'a\\x0cb'  # \u2028 \x0b\n\x0c\ndef f():\n    a = 1\n"
        assert applied(text, REPLACE).decode() == text.replace("a = 1", "a = 2\n    b = 3")

    def test_append_goes_behind_the_last_line(self) -> None:
        append = edit("append", "", "def g():\n    return 1\n", "")
        assert applied("x = 1\n", append) == b"x = 1\n\n\ndef g():\n    return 1\n"
        assert applied("x = 1\r\n", append) == b"x = 1\r\n\r\n\r\ndef g():\r\n    return 1\r\n"
        assert applied("x = 1", append) == b"x = 1\n\n\ndef g():\n    return 1"


class TestSharedLines:
    """An anchor that shares its line gets one of its own."""

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("def f(): a = 1", "def f():\n    a = 2\n    b = 3"),
            (
                "def f(): a = 1; c = 2  # end\n",
                "def f():\n    a = 2\n    b = 3\n    c = 2  # end\n",
            ),
            ("def f():\n  z = 0; a = 1;\n", "def f():\n  z = 0\n  a = 2\n  b = 3\n"),
            (
                "def f():\n    if (p and\n        q): a = 1\n    else: pass\n",
                "def f():\n    if (p and\n        q):\n        a = 2\n        b = 3\n    else: pass\n",
            ),
            (
                "def f():\n    if p: \\\n        a = 1\n",
                "def f():\n    if p:\n        a = 2\n        b = 3\n",
            ),
            (
                "def f():\n\ttry: a = 1\n\tfinally: pass\n",
                "def f():\n\ttry:\n\t\ta = 2\n\t\tb = 3\n\tfinally: pass\n",
            ),
            (
                "def f():\n    if p: pass\n    elif q: a = 1\n",
                "def f():\n    if p: pass\n    elif q:\n        a = 2\n        b = 3\n",
            ),
        ],
    )
    def test_replace(self, text: str, expected: str) -> None:
        assert applied(text, REPLACE).decode() == expected

    def test_before_and_after(self) -> None:
        text = "def f(): z = 0; a = 1; c = 2\n"
        head = "def f():\n    z = 0\n"
        new = "    if x:\n        return\n"
        assert applied(text, BEFORE).decode() == f"{head}{new}    a = 1\n    c = 2\n"
        assert applied(text, AFTER).decode() == f"{head}    a = 1\n{new}    c = 2\n"

    def test_an_anchor_that_begins_on_a_shared_line_and_ends_on_another(self) -> None:
        text = "def f():\n    z = 0; a = 1\n    if p: pass\n    c = 2\n"
        change = edit("replace", "a = 1\nif p: pass\n", "b = 3\n")
        assert applied(text, change) == b"def f():\n    z = 0\n    b = 3\n    c = 2\n"


class TestSeveralEdits:
    def test_edits_of_one_place_are_made_in_their_order(self) -> None:
        text = "def f():\n    a = 1\n    b = 2\n"
        edits = [
            edit("before", "b = 2\n", "third = 0\n"),
            edit("after", "a = 1\n", "first = 0\n"),
            edit("after", "a = 1\n", "second = 0\n"),
            edit("before", "b = 2\n", "fourth = 0\n"),
        ]
        assert applied(text, *edits).split() == (
            b"def f(): a = 1 first = 0 second = 0 third = 0 fourth = 0 b = 2".split()
        )

    @pytest.mark.parametrize(
        "other",
        [
            REPLACE,
            AFTER,
            edit("replace", "if y:\n    a = 1\n", "pass\n"),
            edit("replace", "a = 1\nc = 3\n", "pass\n"),
        ],
    )
    def test_a_replaced_statement_is_nobody_elses_anchor(self, other: Edit) -> None:
        text = "def f():\n    if y:\n        a = 1\n        c = 3\n".replace(
            "        c = 3\n", "" if "if y" in other.find else "        c = 3\n"
        )
        for pair in ([REPLACE, other], [other, REPLACE]):
            with pytest.raises(OverlapError) as caught:
                applied(text, *pair)
            assert caught.value.patches == ("patch0", "patch1")

    def test_neighbouring_replacements_do_not_overlap(self) -> None:
        text = "def f():\n    a = 1\n    b = 2\n"
        edits = [edit("replace", "b = 2\n", "y = 0\n"), edit("replace", "a = 1\n", "x = 0\n")]
        assert applied(text, *edits) == b"def f():\n    x = 0\n    y = 0\n"


class TestRefusing:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("def f():\n    pass\n", "stands nowhere in m:f"),
            ("def f():\n    a = 1\n    a = 1\n", r"stands 2 times \(lines 2, 3\) in m:f"),
            ("def f():\n    a = 1\n    if b:\n        a = 1\n", r"2 times \(lines 2, 4\)"),
            ("def g():\n    a = 1\n", "there is no m:f"),
        ],
    )
    def test_an_anchor_that_does_not_stand_exactly_once(self, text: str, message: str) -> None:
        with pytest.raises(AnchorError, match=message):
            applied(text, REPLACE)

    def test_overlapping_matches_count_each(self) -> None:
        with pytest.raises(AnchorError, match="2 times"):
            applied(
                "def f():\n    a = 1\n    a = 1\n    a = 1\n",
                edit("replace", "a = 1\na = 1\n", "b\n"),
            )

    def test_text_that_would_not_mean_what_the_edit_means(self) -> None:
        # Indenting the new text would indent the inside of its string as well.
        change = edit("replace", "a = 1\n", 's = """x\ny"""\n')
        with pytest.raises(AnchorError, match="does not mean what the edits mean"):
            applied("def f():\n    a = 1\n", change)

    @pytest.mark.parametrize(
        "raw", [b"\xff\xfe", b"# coding: no-such-codec\n", b"# coding: utf-7\nx = 1 +- 2\n\x80"]
    )
    def test_a_file_that_cannot_be_decoded(self, raw: bytes) -> None:
        with pytest.raises(SourceError, match=r"m\.py cannot be decoded|m\.py: decoding"):
            Source.from_bytes(Path("m.py"), raw)

    @pytest.mark.parametrize("text", ["def f(:\n", "x = \x00\n", "(" * 10_000])
    def test_a_file_that_cannot_be_parsed(self, text: str) -> None:
        with pytest.raises(SourceError, match=r"m\.py cannot be parsed"):
            parse(Source.from_bytes(Path("m.py"), text.encode()))

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="cannot be read: No such file"):
            Source.read(tmp_path / "m.py")


def test_text_that_parses_but_does_not_compile_is_refused() -> None:
    text = "async def f():\n    a = 1\n    yield a\n"
    with pytest.raises(AnchorError, match="does not compile: 'return' with value in async"):
        applied(text, edit("after", "a = 1\n", "if x:\n    return 1\n"))
