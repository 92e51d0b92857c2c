from __future__ import annotations

from pathlib import Path

import pytest
from rig.stand_in import (
    FAULTY,
    FILE,
    MODULE,
    Upstream,
    edit,
    patch,
    plan,
    reason,
    verdicts,
    write_sglang,
)

from sglang_commfix.engine.register import Register


OTHER = "sglang.srt.other"


class TestAllOrNothing:
    def test_a_patch_with_one_edit_that_does_not_match_is_refused_whole(
        self, tmp_path: Path, upstream: Upstream, faulty: Path
    ) -> None:
        bad = edit(scope="LayerCommunicator.other", find="return 2", after="pass")
        register = upstream.register(tmp_path / "patches", patch(edit=[edit(), bad]))
        made = plan(register, faulty)
        assert verdicts(made) == {"1-guard": "refused"}
        assert "stands nowhere" in reason(made)
        assert not made.modules

    def test_a_patch_of_two_modules_is_refused_in_both(
        self, tmp_path: Path, upstream: Upstream
    ) -> None:
        there = {"module": OTHER, "scope": "f", "find": "a = 1", "after": "b = 2"}
        for release in ("1.1", "1.2"):
            upstream.releases[release][OTHER] = "def f():\n    a = 1\n"
        register = upstream.register(tmp_path / "patches", patch(edit=[edit(), there]))
        files = {FILE: FAULTY, "srt/other.py": "def f():\n    a = 1\n"}
        made = plan(register, write_sglang(tmp_path / "whole", files))
        assert set(made.modules) == {MODULE, OTHER}
        made = plan(
            register, write_sglang(tmp_path / "half", files | {"srt/other.py": "def f(): 0\n"})
        )
        assert verdicts(made) == {"1-guard": "refused"}
        assert not made.modules

    def test_overlapping_edits_are_refused_and_both_are_named(
        self, tmp_path: Path, upstream: Upstream, faulty: Path
    ) -> None:
        one = patch("1-guard", edit=[edit(find="size = batch.size", replace="size = 1")])
        two = patch("2-more", edit=[edit(find="size = batch.size", replace="size = 2")])
        three = patch(
            "3-apart", edit=[edit(scope="LayerCommunicator.other", find="return 1", before="pass")]
        )
        register = upstream.register(tmp_path / "patches", one, two, three)
        made = plan(register, faulty)
        assert verdicts(made) == {"1-guard": "refused", "2-more": "refused", "3-apart": "apply"}
        for name in ("1-guard", "2-more"):
            assert reason(made, name) == "1-guard and 2-more both change line 10"
        assert verdicts(plan(register, faulty, "1-guard"))["1-guard"] == "apply"

    def test_what_requires_a_refused_patch_falls_with_it_along_the_whole_chain(
        self, tmp_path: Path, upstream: Upstream, faulty: Path
    ) -> None:
        base = patch("1-guard", edit=[edit(find="absent()", after="pass")])
        middle = patch(
            "2-middle",
            requires=["1-guard"],
            edit=[edit(scope="LayerCommunicator.other", find="return 1", before="pass")],
        )
        top = patch(
            "3-top", requires=["2-middle"], edit=[edit(find="size = batch.size", after="pass")]
        )
        made = plan(upstream.register(tmp_path / "patches", base, middle, top), faulty)
        assert set(verdicts(made).values()) == {"refused"}
        assert reason(made, "2-middle") == "it requires 1-guard, which is refused"
        assert reason(made, "3-top") == "it requires 2-middle, which is refused"

    def test_patches_that_require_each_other_stand_together(
        self, tmp_path: Path, upstream: Upstream, faulty: Path
    ) -> None:
        one = patch("1-guard", requires=["2-more"])
        two = patch(
            "2-more", requires=["1-guard"], edit=[edit(find="return size > 0", before="pass")]
        )
        register = upstream.register(tmp_path / "patches", one, two)
        assert set(verdicts(plan(register, faulty, "1")).values()) == {"apply"}
        assert set(verdicts(plan(register, faulty, "2-more")).values()) == {"apply"}
        made = plan(register, faulty, "all,-2-more")
        assert verdicts(made) == {"1-guard": "refused", "2-more": "disabled"}
        assert "it requires 2-more, which is disabled" in reason(made)

    def test_a_requirement_that_sglang_has_by_itself_is_met(
        self, tmp_path: Path, upstream: Upstream, faulty: Path
    ) -> None:
        one = patch("1-guard", requires=["2-old"])
        never = {"module": MODULE, "unmentioned": ["fixed_long_ago"], "why": "it is gone"}
        old = patch("2-old", affected="==1.0", fixed_in="1.1", sound=[never])
        made = plan(upstream.register(tmp_path / "patches", one, old), faulty)
        assert verdicts(made) == {"1-guard": "apply", "2-old": "not-needed"}

    def test_conflicting_patches_are_refused_only_together(
        self, tmp_path: Path, upstream: Upstream, faulty: Path
    ) -> None:
        one = patch("1-guard", conflicts=["2-more"])
        two = patch("2-more", edit=[edit(find="return size > 0", before="pass")])
        register = upstream.register(tmp_path / "patches", one, two)
        made = plan(register, faulty)
        assert verdicts(made) == {"1-guard": "refused", "2-more": "refused"}
        assert "cannot be combined with 1-guard" in reason(made, "2-more")
        assert verdicts(plan(register, faulty, "2-more")) == {
            "1-guard": "disabled",
            "2-more": "apply",
        }


class TestSelection:
    @pytest.fixture
    def register(self, tmp_path: Path, upstream: Upstream) -> Register:
        two = patch(
            "2-fast", kind="performance", edit=[edit(find="return size > 0", before="pass")]
        )
        return upstream.register(tmp_path / "patches", patch(), two)

    def test_what_is_not_selected_is_disabled_and_says_whether_it_is_needed(
        self, register: Register, faulty: Path
    ) -> None:
        made = plan(register, faulty, "1")
        assert verdicts(made) == {"1-guard": "apply", "2-fast": "disabled"}
        assert reason(made, "2-fast") == (
            "SGLANG_COMMFIX=1 does not select it (performance); this sglang can take it"
        )
        assert "taken out by" in reason(plan(register, faulty, "all,-2-fast"), "2-fast")
        assert "everything is switched off" in reason(plan(register, faulty, "0"))
        assert not plan(register, faulty, "0").modules

    def test_a_disabled_patch_that_would_be_refused_says_why(
        self, register: Register, tmp_path: Path
    ) -> None:
        made = plan(register, write_sglang(tmp_path, {FILE: "def f(:\n"}), "0")
        assert set(verdicts(made).values()) == {"disabled"}
        assert "cannot be parsed" in reason(made)
        assert not made.unneeded


def test_edits_of_several_patches_are_made_in_the_order_of_the_register(
    tmp_path: Path, upstream: Upstream, faulty: Path
) -> None:
    late = patch("1-late", order=1, edit=[edit(after="late()")])
    early = patch("2-early", edit=[edit(after="early()")])
    register = upstream.register(tmp_path / "patches", late, early)
    assert [p.id for p in register.patches] == ["2-early", "1-late"]
    text = plan(register, faulty).modules[MODULE].after.decode()
    assert text.index("early()") < text.index("late()")
