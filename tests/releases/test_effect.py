"""In real files: an edit of code that its name does not lead to is refused, for every entry.

The forms that there are stand in tests/engine/test_effect.py.
"""

from __future__ import annotations

from functools import cache

import pytest
from rig.sources.fuzz import KEPT, LOST, Ground, bound
from rig.sources.published import with_files

from sglang_commfix.engine.register import Patch, Target, load


pytestmark = [pytest.mark.releases, pytest.mark.one_python]

# 0.5.1 to 0.5.7 take vllm's class on hardware that they do not know, and are patched.
BOUND_ANEW = "sglang.srt.layers.layernorm:RMSNorm.forward_with_allreduce_fusion"


@cache
def ground(name: str) -> Ground:
    patch = load()[name]
    return Ground(patch, patch.affected_releases[-1])


def edited(patch: Patch) -> list[Target]:
    edits = patch.edits_for(patch.affected_releases[-1])
    return sorted({edit.target for edit in edits if edit.operation != "append"})


def verdict(name: str, target: Target, below: str) -> tuple[str, str]:
    source = ground(name).tree.source(target.module)
    assert source is not None
    text = f"{source.text}\n{bound(below, target.scope)}\n"
    tree = with_files(ground(name).tree, {target.module: text.encode()})
    (decision,) = ground(name).decided(tree, [load()[name]])
    return decision["decision"], decision["reason"]


@pytest.mark.parametrize("patch", load().patches, ids=lambda patch: patch.id)
def test_an_edit_whose_name_is_led_elsewhere_below_is_refused(patch: Patch) -> None:
    for number, target in enumerate(edited(patch)):
        for below in (LOST[number % len(LOST)], "{scope} = None"):
            decided, reason = verdict(patch.id, target, below)
            assert decided == "refused", (target, below)
            assert f"may bind {target} to code that no edit reaches" in reason


@pytest.mark.parametrize("patch", load().patches, ids=lambda patch: patch.id)
def test_a_method_that_is_wrapped_below_is_patched(patch: Patch) -> None:
    for number, target in enumerate(one for one in edited(patch) if "." in one.scope):
        decided, reason = verdict(patch.id, target, KEPT[number % len(KEPT)])
        assert decided == "apply", reason


def test_one_release_binds_a_name_anew_and_is_patched() -> None:
    patch = load()["declined-fused-allreduce"]
    for release, lines in (("0.5.7", 1), ("0.5.8", 0)):
        own = Ground(patch, release)
        clauses = [c for c in patch.clauses if str(c.target) == BOUND_ANEW]
        stands = [own.tree.stands(clause) for clause in clauses]
        assert {len(one.anew) for one in stands if one.form} == {lines}
        assert own.decisions[patch.id]["decision"] == "apply"
