"""What may never happen to a real file, whatever people did to it."""

from __future__ import annotations

import ast
import random
from collections.abc import Collection
from functools import cache
from types import CodeType

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from rig.sources import mutations
from rig.sources.fuzz import chunk
from rig.sources.mutations import FORMATTERS, MUTATORS, mutated
from rig.sources.published import RELEASES, after, lock_of, tree, with_files

from sglang_commfix.engine.fingerprint import find_scope, normal_form, parse
from sglang_commfix.engine.guard import decide
from sglang_commfix.engine.make_lock import make_lock
from sglang_commfix.engine.register import Patch, Target, load
from sglang_commfix.engine.source import Source
from sglang_commfix.run.host import Settings
from sglang_commfix.run.plan import Plan, select


pytestmark = [pytest.mark.releases, pytest.mark.filterwarnings("ignore::SyntaxWarning")]

RELEASE = "0.5.11"
COMMUNICATOR = "sglang.srt.layers.communicator"
RUNNER = "sglang.srt.model_executor.model_runner"
# Thousands of lines, each of them formatted and compiled for every example.
LARGE = {RUNNER, "sglang.srt.server_args", "sglang.srt.distributed.parallel_state"}
TARGETS = sorted(
    target
    for target in {target for patch in load().patches for target in patch.targets}
    if target.module not in LARGE and tree(RELEASE).fingerprint(target) is not None
)
IDS = [patch.id for patch in load().patches]
# For each entry, the releases at which something changes: first, last, and beside each border.
BORDERS = {
    patch.id: sorted(
        {
            RELEASES[at]
            for index, release in enumerate(RELEASES)
            for at in (index, index - 1)
            if index == 0
            or (release in patch.affected_releases)
            != (RELEASES[index - 1] in patch.affected_releases)
        }
        | {RELEASES[0], RELEASES[-1]}
    )
    for patch in load().patches
}
# Seeds, not draws: a change to a thousand lines is one choice.
CHANCES = st.integers(0, 2**32).map(random.Random)
slow = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=30)


def plan_for(texts: dict[str, str], allow: Collection[str] = ()) -> Plan:
    """Plan for the release with other text in some of its modules; nothing else is decided anew."""
    known = {
        patch.id: decision
        for patch, decision in zip(load().patches, lock_of(RELEASE)["decisions"], strict=True)
        if texts.keys().isdisjoint(patch.modules)
    }
    edited = with_files(tree(RELEASE), {name: text.encode() for name, text in texts.items()})
    lock = make_lock(load(), edited, allow, known)
    return select(edited.sglang, Settings("all"), lock, "engine")


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
@example(
    # That the ranks agree is taken out of a function, which once counted as a release before it.
    Target("sglang.srt.layers.flashinfer_comm_fusion", "ensure_workspace_initialized"),
    [mutations.rename, mutations.delete_a_statement],
    random.Random(34017),
    False,
)
def test_a_change_inside_a_target_never_turns_a_decision_round_and_is_spliced_right(
    target: Target, mutators: list[object], chance: random.Random, allowed: bool
) -> None:
    """What it does to the edit is looked at by running it, in test_reliance.py."""
    before = text_of(target.module)
    text = mutated(before, target.scope, mutators, chance)
    assume(compiles(text))
    concerned = {p.id for p in load().patches if target in p.targets}
    made = plan_for({target.module: text}, concerned if allowed else ())
    for patch, before_it in zip(made.patches, pristine().patches, strict=True):
        wanted = {before_it["decision"], "refused"}
        if allowed and patch["id"] in concerned:
            wanted.add("apply")
        assert patch["decision"] in wanted, patch["reason"]
    for module in made.modules.values():
        compile(module.after, "f", "exec", dont_inherit=True)
        changed = after(module).text.splitlines()
        old = module.before.decode().splitlines()
        assert len([line for line in old if line in changed]) >= len(old) - 10


def unknown(text: str, scopes: Collection[str]) -> str:
    """Put code that nobody knows in the place of the bodies of ``scopes``, with the same names."""
    module = ast.parse(text)
    for name in scopes:
        scope = find_scope(module, name)
        if scope is None:
            continue
        names = sorted({n.id for n in ast.walk(scope) if isinstance(n, ast.Name)})
        attributes = sorted({n.attr for n in ast.walk(scope) if isinstance(n, ast.Attribute)})
        given = {n.arg for n in ast.walk(scope) if isinstance(n, ast.keyword) and n.arg}
        body = f"vendors_own(lambda: ({', '.join(names)},), lambda x: ({'x.' * bool(attributes)}"
        body += f"{', x.'.join(attributes)},)" if attributes else "x,)"
        body += "".join(f", {name}=None" for name in sorted(given)) + ")"
        scope.body = ast.parse(body).body
    return ast.unparse(module)


def scopes_of(patch: Patch) -> list[Target]:
    return sorted({one.target for one in patch.clauses if one.target.scope})


@pytest.mark.one_python
@pytest.mark.parametrize("name", IDS)
@settings(slow, max_examples=5)
@given(st.data())
def test_where_code_is_unknown_nothing_is_decided_that_stands_on_it(
    name: str, data: st.DataObject
) -> None:
    patch = load()[name]
    release = data.draw(st.sampled_from(BORDERS[patch.id]))
    replaced = data.draw(st.sets(st.sampled_from(scopes_of(patch)), min_size=1))
    original = tree(release)
    texts = {}
    for module in {target.module for target in replaced}:
        source = original.source(module)
        if source is not None:
            own = [target.scope for target in replaced if target.module == module]
            texts[module] = unknown(source.text, own).encode()
    there = {t for t in replaced if original.fingerprint(t) is not None}
    others = [one for one in IDS if one != name]
    (finding,) = decide(load(), with_files(original, texts), known=others)
    shows = [
        one for one in patch.sound if original.stands(one).form in one.forms(patch.fingerprints)
    ]
    relied = {one.target for one in patch.clauses if one not in patch.sound}
    affected = release in patch.affected_releases
    assert finding.verdict in {"refused", "apply" if affected else "not-needed"}, finding.reason
    if affected and there & relied:
        variant = next(v for v in patch.variants if set(v.edits) == set(patch.edits_for(release)))
        if there & {one.target for one in variant.clauses if one.find}:
            assert finding.verdict == "refused", finding.reason
    elif affected:
        assert finding.verdict == "apply", finding.reason
    elif all(one.target in there and one.find for one in shows):
        assert finding.verdict == "refused", finding.reason
    else:
        assert finding.verdict == "not-needed", finding.reason


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
    assert verdicts["19918-dummy-run-alignment"] in {"apply", "refused"}
    assert verdicts["21249-workspace-preinit"] == "not-needed"


@pytest.mark.one_python
@pytest.mark.parametrize("number", range(len(IDS)), ids=IDS)
def test_no_mutant_of_a_real_file_is_decided_or_spliced_wrongly(number: int) -> None:
    """`make fuzz` has a hundred thousand of them."""
    _, wrong = chunk(seed=2026, size=8, number=number)
    assert not wrong, "\n\n".join(wrong)
