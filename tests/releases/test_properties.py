"""What may never happen to a real file, whatever people did to it."""

from __future__ import annotations

import ast
import random
from functools import cache
from pathlib import Path
from types import CodeType

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mutations import FORMATTERS, MUTATORS, mutated
from published import released

from sglang_commfix.fingerprint import find_scope, normal_form, parse
from sglang_commfix.installed import Sglang
from sglang_commfix.plan import Plan, make_plan
from sglang_commfix.register import Target, load
from sglang_commfix.settings import Settings
from sglang_commfix.source import Source


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


class Edited(Sglang):
    """The release, with other text in some of its modules."""

    @classmethod
    def like(cls, sglang: Sglang) -> Edited:
        """Read nothing anew: what is not replaced has been parsed."""
        return cls(sglang.path, sglang.version, dict(sglang._sources), dict(sglang._trees))

    def replace(self, module: str, text: str) -> Edited:
        self._trees.pop(module, None)
        self._sources[module] = Source.from_bytes(self.file_of(module), text.encode())
        return self


def plan_for(texts: dict[str, str], **environ: str) -> Plan:
    sglang = Edited.like(parsed())
    for module, text in texts.items():
        sglang.replace(module, text)
    return make_plan(load(), sglang, Settings.from_environment(load(), "all", environ))


@cache
def parsed() -> Sglang:
    sglang = Sglang.at(released(RELEASE) / "sglang")
    make_plan(load(), sglang, Settings.from_environment(load(), "all", {}))
    return sglang


@cache
def pristine() -> Plan:
    return plan_for({})


@cache
def text_of(module: str) -> str:
    return Sglang.at(released(RELEASE) / "sglang").file_of(module).read_text(encoding="utf-8")


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
    assert [d.verdict for d in made.decisions] == [d.verdict for d in pristine().decisions]
    after, expected = made.modules[COMMUNICATOR].after, pristine().modules[COMMUNICATOR].after
    assert normal_form(parse(after)) == normal_form(parse(expected))
    assert without_docstrings(after) == without_docstrings(expected)
    assert (b"\r\n" in after.raw) == ("\r\n" in text)
    assert after.text.endswith("\n") == text.endswith("\n")


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
    allow = {"SGLANG_COMMFIX_ALLOW_UNKNOWN": ",".join(concerned)} if allowed else {}
    made = plan_for({target.module: text}, **allow)
    for decision, before_it in zip(made.decisions, pristine().decisions, strict=True):
        if decision.patch.id not in concerned or same:
            assert decision.verdict == before_it.verdict
        else:
            assert decision.verdict in ({"apply", "refused"} if allowed else {"refused"})
    for module in made.modules.values():
        compile(module.after.raw, "f", "exec", dont_inherit=True)
        changed = module.after.text.splitlines()
        kept = [line for line in module.before.text.splitlines() if line in changed]
        assert len(kept) >= len(module.before.text.splitlines()) - 10


@slow
@given(st.binary(max_size=200), st.integers(0, 40_000), st.integers(0, 200))
def test_no_damage_to_a_file_lets_an_exception_escape(noise: bytes, at: int, length: int) -> None:
    raw = text_of(COMMUNICATOR).encode()
    try:
        text = (raw[:at] + noise + raw[at + length :]).decode()
    except UnicodeDecodeError:
        return
    made = plan_for({COMMUNICATOR: text})
    assert {d.verdict for d in made.decisions} <= {"apply", "refused", "not-needed"}


@settings(slow, max_examples=8)
@given(st.sampled_from(MUTATORS), CHANCES)
def test_the_same_holds_for_the_large_file(mutator: object, chance: random.Random) -> None:
    text = mutated(text_of(RUNNER), "ModelRunner._dummy_run", [mutator], chance)
    made = plan_for({RUNNER: text})
    verdicts = {d.patch.id: d.verdict for d in made.decisions}
    source = Source.from_bytes(Path("m"), text.encode())
    old = Source.from_bytes(Path("m"), text_of(RUNNER).encode())
    scopes = [find_scope(parse(s), "ModelRunner._dummy_run") for s in (source, old)]
    same = normal_form(scopes[0]) == normal_form(scopes[1])  # type: ignore[arg-type]
    assert verdicts["19918-dummy-run-alignment"] == ("apply" if same else "refused")
