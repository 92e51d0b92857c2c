"""What counts for an edit, and what does not, on functions of a few lines."""

from __future__ import annotations

import ast

import pytest
from packaging.specifiers import SpecifierSet

from sglang_commfix.engine.fingerprint import find_scope
from sglang_commfix.engine.register import Clause, Target
from sglang_commfix.engine.reliance import Form, form_of, module_bindings, names_in
from sglang_commfix.engine.rewrite import anchors_in


BASE = """
from sizes import tp_size, mode

def f(self, batch, other=1):
    rows = batch.size
    unrelated = other + 1
    print(unrelated)
    if rows > 4:
        return None
    for step in range(rows):
        rows = rows + step
        anchor(rows, tp_size)
        self.after(rows)
    rows = 0
    return rows
"""
ANCHOR = "anchor(rows, tp_size)"


def form(
    text: str, find: str = ANCHOR, added: str = "", *, kept: bool = True, deep: bool = True,
    given: tuple[str, ...] = (), scope: str = "f",
) -> Form:  # fmt: skip
    clause = Clause(Target("m", scope), find, added, kept, deep, given, (), "", SpecifierSet())
    module = ast.parse(text)
    found = find_scope(module, scope)
    assert found is not None
    (anchor,) = anchors_in(found, ast.parse(find).body)
    return form_of(module_bindings(module), found, anchor, clause)


def changed(old: str, new: str, base: str = BASE) -> str:
    assert base.count(old) == 1
    return base.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("unrelated = other + 1", "unrelated = other + 2  # much more"),
        ("    print(unrelated)\n", ""),
        ("print(unrelated)", "print(unrelated, rows, batch)"),
        ("self.after(rows)", "self.before(rows)"),
        ("return rows", "return rows + 1"),
        ("other=1", "other=2, more=3"),
        ("def f(", "import os\n\ndef g(): pass\n\ndef f("),
        ("print(unrelated)", "if other:\n        raise ValueError"),
    ],
)
def test_what_has_nothing_to_do_with_the_place_does_not_count(old: str, new: str) -> None:
    assert form(changed(old, new)) == form(BASE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rows = batch.size", "rows = batch.count"),
        ("rows = batch.size", "rows: int = batch.size + 1"),
        ("rows > 4", "rows > 5"),
        ("return None", "return False"),
        ("    if rows > 4:\n        return None\n", ""),
        ("print(unrelated)", "if other:\n        return unrelated"),
        ("    rows = batch.size", "    batch.size = 3\n    rows = batch.size"),
        ("    rows = batch.size", "    batch = smaller(batch)\n    rows = batch.size"),
        ("print(unrelated)", "import tp_size"),
        ("print(unrelated)", "with use(batch) as rows:\n        pass"),
        ("print(unrelated)", "rows += 1"),
        ("print(unrelated)", "print(rows := 3)"),
        ("range(rows)", "range(rows + 1)"),
        ("rows = rows + step", "rows = rows - step"),
        ("        rows = rows + step", "        if step:\n            break\n        rows = rows + step"),
        ("self.after(rows)", "rows = 5"),
        ("        anchor(", "        if rows:\n            continue\n        anchor("),
        ("        anchor(rows, tp_size)", "        if step:\n            anchor(rows, tp_size)"),
        ("batch, other", "batch=None, other"),
        ("def f(", "@cached\ndef f("),
        ("from sizes import tp_size, mode", "from other import tp_size, mode"),
        ("mode\n", "mode\n\nif mode:\n    tp_size = 1\n"),
        ("rows = batch.size", "def rows(): pass"),
        ("print(unrelated)", "def g():\n        nonlocal rows\n        rows = 3\n    g()"),
        ("print(unrelated)", "[(rows := each) for each in self]"),
        ("print(unrelated)", "match other:\n        case {**rows}:\n            pass"),
        ("print(unrelated)", "if other:\n        yield"),
        ("mode\n", "mode\nfrom elsewhere import *\n"),
        ("rows = batch.size", "match batch:\n        case [rows]:\n            pass"),
        ("rows = batch.size", "try:\n        pass\n    except E as rows:\n        pass"),
    ],
)  # fmt: skip
def test_what_the_place_is_reached_by_reads_or_writes_counts(old: str, new: str) -> None:
    assert form(changed(old, new)) != form(BASE)


def test_a_definition_that_never_reaches_the_place_does_not_count() -> None:
    overwritten = changed("rows = batch.size", "rows = 9\n    rows = batch.size")
    assert form(overwritten) == form(BASE)


def test_of_two_branches_the_other_one_does_not_count() -> None:
    text = "def f(a):\n    if a:\n        x = 1\n        return x\n    else:\n        x = 2\n        use(x)\n"
    assert form(text, "use(x)") == form(text.replace("x = 1", "x = 7"), "use(x)")
    assert form(text, "use(x)") != form(text.replace("x = 2", "x = 7"), "use(x)")
    assert form(text, "use(x)") != form(text.replace("if a", "if not a"), "use(x)")


def test_a_raise_counts_where_the_function_itself_may_catch_it() -> None:
    text = "def f(a):\n    try:\n        check(a)\n        use(a)\n    except E:\n        pass\n"
    raising = text.replace("check(a)", "check(a)\n        if a: raise E")
    assert form(raising, "use(a)") != form(text, "use(a)")


def test_where_a_name_that_is_written_is_assigned_next_counts() -> None:
    text = "def f(a):\n    x = a\n    use(x)\n    x = other(a)\n    use(x)\n    x = last(a)\n"
    before = form(text, "x = a")
    assert form(changed("other(a)", "another(a)", text), "x = a") != before
    assert form(text.replace("use(x)", "look(x)"), "x = a") == before
    assert form(changed("last(a)", "never(a)", text), "x = a") == before


class TestAttributes:
    TEXT = "def f(self):\n    self.size = 1\n    self.check()\n    log('x')\n    use(self.size)\n"

    def test_one_that_is_set_in_the_function_counts_with_the_calls_that_get_its_object(
        self,
    ) -> None:
        before = form(self.TEXT, "use(self.size)")
        for old, new in [("self.size = 1", "self.size = 2"), ("self.check", "self.reset")]:
            assert form(changed(old, new, self.TEXT), "use(self.size)") != before
        assert form(changed("log('x')", "reset(self)", self.TEXT), "use(self.size)") != before
        assert form(changed("log('x')", "log('y')", self.TEXT), "use(self.size)") == before

    @pytest.mark.parametrize("how", ["setattr(self, 'size', 2)", "vars(self)['size'] = 2"])
    def test_one_that_is_set_by_name_is_set(self, how: str) -> None:
        before = form(self.TEXT, "use(self.size)")
        assert form(changed("log('x')", how, self.TEXT), "use(self.size)") != before

    def test_one_that_comes_from_outside_does_not_make_every_call_count(self) -> None:
        text = self.TEXT.replace("self.size = 1", "pass")
        before = form(text, "use(self.size)")
        assert form(changed("self.check", "self.reset", text), "use(self.size)") == before


class TestNewText:
    GUARD = "if mode == 1:\n    return None\n"

    def test_what_it_reads_and_the_anchor_does_not_counts_too(self) -> None:
        rebound = changed("import tp_size, mode", "import tp_size\nfrom other import mode")
        assert form(rebound) == form(BASE)
        assert form(rebound, added=self.GUARD) != form(BASE, added=self.GUARD)

    def test_what_it_has_bound_itself_comes_from_nowhere_else(self) -> None:
        own = "local = 1\nuse(local)\n"
        assert form(changed("print(unrelated)", "local = 2"), added=own) == form(BASE, added=own)
        assert form("local = 3\n" + BASE, added=own) == form(BASE, added=own)

    def test_an_earlier_exit_that_answers_the_same_takes_nothing_from_it(self) -> None:
        more = changed("print(unrelated)", "if other:\n        return None")
        assert form(more) != form(BASE)
        assert form(more, added=self.GUARD) == form(BASE, added=self.GUARD)
        assert form(more, added=self.GUARD, kept=False) != form(BASE, added=self.GUARD, kept=False)
        acts = self.GUARD + "act()\n"
        assert form(more, added=acts) != form(BASE, added=acts)

    def test_names_that_are_given_are_taken_as_they_come(self) -> None:
        other = changed("rows = batch.size", "rows = len(batch)")
        other = changed("rows = rows + step", "rows = rows * step", other)
        assert form(other, given=("rows",)) == form(BASE, given=("rows",))
        assert form(changed("range(rows)", "range(9)"), given=("rows",)) != form(
            BASE, given=("rows",)
        )


def test_what_is_only_looked_at_depends_on_the_way_there_alone() -> None:
    defined = changed("rows = batch.size", "rows = len(batch)")
    assert form(defined, deep=False) == form(BASE, deep=False)
    left = changed("print(unrelated)", "if other:\n        return unrelated")
    assert form(left, deep=False) != form(BASE, deep=False)


def test_a_place_in_an_inner_function_is_looked_at_in_that_function() -> None:
    text = "def f(a):\n    def g(b):\n        use(b)\n    return g\n"
    assert form(text, "use(b)") == form(text.replace("return g", "return None"), "use(b)")
    assert form(text, "use(b)") != form(text.replace("g(b)", "g(b=1)"), "use(b)")


def test_a_name_outside_ascii_is_one_like_others() -> None:
    renamed = changed("rows = batch.size", "rows = größe")

    assert form(renamed).digest != form(changed("rows = batch.size", "rows = grösse")).digest


def test_names_of_comprehensions_and_lambdas_are_their_own() -> None:
    text = "x = 1\ndef f(a):\n    use([x for x in a], lambda y: y)\n"
    find = "use([x for x in a], lambda y: y)"
    assert form(text, find) == form(text.replace("x = 1", "x = 2\ny = 3"), find)


def test_a_form_lists_what_it_is_of() -> None:
    parts = form(BASE).parts
    assert any("parameter batch" in part for part in parts)
    assert "tp_size is sizes:tp_size" in parts
    assert not any("unrelated" in part for part in parts)


def test_every_kind_of_name_is_mentioned() -> None:
    text = "import a.b as c\nfrom d import e\nclass F:\n    def g(self, h): i.j(k=1)\nglobal l\n"
    text += "# m\n'n'\n"
    names = names_in(ast.parse(text))
    assert set("abcdeFghijkl") <= names
    assert names.isdisjoint({"m", "n"})
