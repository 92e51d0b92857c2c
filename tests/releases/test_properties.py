"""What may never happen to a real file, whatever people did to it."""

from __future__ import annotations

import ast
import random
from collections.abc import Collection
from functools import cache
from pathlib import Path
from types import CodeType

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mutations import FORMATTERS, MUTATORS, mutated
from published import after, lock_of, tree

from sglang_commfix.engine.fingerprint import find_scope, normal_form, parse
from sglang_commfix.engine.make_lock import make_lock
from sglang_commfix.engine.register import Target, load
from sglang_commfix.engine.source import Source
from sglang_commfix.engine.tree import Tree
from sglang_commfix.files import Sglang
from sglang_commfix.run.host import Settings
from sglang_commfix.run.plan import Plan, select


pytestmark = [pytest.mark.releases, pytest.mark.filterwarnings("ignore::SyntaxWarning")]

RELEASE = "0.5.11"
COMMUNICATOR = "sglang.srt.layers.communicator"
RUNNER = "sglang.srt.model_executor.model_runner"
# Thousands of lines, each of them formatted and compiled for every example.
LARGE = {RUNNER, "sglang.srt.server_args", "sglang.srt.distributed.parallel_state"}
TARGETS = sorted({t for patch in load().patches for t in patch.targets if t.module not in LARGE})
# Seeds, not draws: a change to a thousand lines is one choice.
CHANCES = st.integers(0, 2**32).map(random.Random)
slow = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=30)


def plan_for(texts: dict[str, str], allow: Collection[str] = ()) -> Plan:
    """Plan for the release with other text in some of its modules; nothing else is read anew."""
    sglang = Sglang(parsed().sglang.path)
    sglang._raw = parsed().sglang._raw | {name: text.encode() for name, text in texts.items()}
    edited = Tree(sglang)
    for name in parsed()._trees.keys() - texts.keys():
        edited._sources[name] = parsed()._sources[name]
        edited._trees[name] = parsed()._trees[name]
    return select(sglang, Settings("all"), make_lock(load(), edited, allow), "engine")


@cache
def parsed() -> Tree:
    lock_of(RELEASE)
    return tree(RELEASE)


@cache
def pristine() -> Plan:
    return plan_for({})


@cache
def text_of(module: str) -> str:
    return tree(RELEASE).sglang.file_of(module).read_text(encoding="utf-8")


def behaviour(code: CodeType) -> object:
    """What a code object does, without where it stands."""
    constants = [behaviour(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return (code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants)


def without_docstrings(source: Source) -> object:
    """The compiled code, as if it all stood on one line: line changes put in instructions."""
    tree = parse(source)
    for node in ast.walk(tree):
        if hasattr(node, "lineno"):
            node.lineno = node.end_lineno = 1  # type: ignore[attr-defined]
            node.col_offset = node.end_col_offset = 0  # type: ignore[attr-defined]
    return behaviour(compile(tree, "f", "exec", dont_inherit=True, optimize=2))


def compiles(text: str) -> bool:
    try:
        compile(text, "f", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


@slow
@given(
    st.lists(st.sampled_from(FORMATTERS), min_size=1, max_size=3, unique=True),
    CHANCES,
)
def test_formatting_changes_neither_a_decision_nor_the_code_that_runs(
    formatters: list[object], chance: random.Random
) -> None:
    text = text_of(COMMUNICATOR)
    # Those that write other line ends, or none, go last: the others read line feeds.
    for formatter in sorted(formatters, key=FORMATTERS.index, reverse=True):
        if formatter.__name__ not in {"windows_line_ends", "no_final_newline"}:  # type: ignore[attr-defined]
            text = formatter(text, chance)  # type: ignore[operator]
    for formatter in FORMATTERS:
        if formatter in formatters and formatter.__name__ in {
            "windows_line_ends",
            "no_final_newline",
        }:
            text = formatter(text, chance)
    made = plan_for({COMMUNICATOR: text})
    assert [d["decision"] for d in made.patches] == [d["decision"] for d in pristine().patches]
    edited = after(made.modules[COMMUNICATOR])
    expected = after(pristine().modules[COMMUNICATOR])
    assert normal_form(parse(edited)) == normal_form(parse(expected))
    assert without_docstrings(edited) == without_docstrings(expected)
    assert (b"\r\n" in edited.raw) == ("\r\n" in text)
    assert edited.text.endswith("\n") == text.endswith("\n")


@slow
@given(
    st.sampled_from(TARGETS),
    st.lists(st.sampled_from(MUTATORS), min_size=1, max_size=3),
    CHANCES,
    st.booleans(),
)
def test_any_other_change_inside_a_target_is_refused_or_where_allowed_spliced_right(
    target: Target, mutators: list[object], chance: random.Random, allowed: bool
) -> None:
    before = text_of(target.module)
    text = mutated(before, target.scope, mutators, chance)
    assume(compiles(text))
    same = normal_form(parse(Source.from_bytes(Path("m"), text.encode()))) == normal_form(
        parse(Source.from_bytes(Path("m"), before.encode()))
    )
    concerned = {p.id for p in load().patches if target in p.targets}
    made = plan_for({target.module: text}, concerned if allowed else ())
    for patch, before_it in zip(made.patches, pristine().patches, strict=True):
        if patch["id"] not in concerned or same:
            assert patch["decision"] == before_it["decision"]
        else:
            assert patch["decision"] in ({"apply", "refused"} if allowed else {"refused"})
    for module in made.modules.values():
        compile(module.after, "f", "exec", dont_inherit=True)
        changed = after(module).text.splitlines()
        old = module.before.decode().splitlines()
        assert len([line for line in old if line in changed]) >= len(old) - 10


@slow
@given(st.binary(max_size=200), st.integers(0, 40_000), st.integers(0, 200))
def test_no_damage_to_a_file_lets_an_exception_escape(noise: bytes, at: int, length: int) -> None:
    raw = text_of(COMMUNICATOR).encode()
    try:
        text = (raw[:at] + noise + raw[at + length :]).decode()
    except UnicodeDecodeError:
        return
    made = plan_for({COMMUNICATOR: text})
    assert {d["decision"] for d in made.patches} <= {"apply", "refused", "not-needed"}


@settings(slow, max_examples=8)
@given(st.sampled_from(MUTATORS), CHANCES)
def test_the_same_holds_for_the_large_file(mutator: object, chance: random.Random) -> None:
    text = mutated(text_of(RUNNER), "ModelRunner._dummy_run", [mutator], chance)
    made = plan_for({RUNNER: text})
    verdicts = {d["id"]: d["decision"] for d in made.patches}
    source = Source.from_bytes(Path("m"), text.encode())
    old = Source.from_bytes(Path("m"), text_of(RUNNER).encode())
    scopes = [find_scope(parse(s), "ModelRunner._dummy_run") for s in (source, old)]
    same = normal_form(scopes[0]) == normal_form(scopes[1])  # type: ignore[arg-type]
    assert verdicts["19918-dummy-run-alignment"] == ("apply" if same else "refused")
