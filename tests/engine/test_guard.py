"""The table of decisions, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from rig.stand_in import (
    ELSEWHERE,
    FAULTY,
    FILE,
    FIXED,
    GONE,
    GUARD,
    MENDED,
    MODULE,
    Upstream,
    dedented,
    edit,
    in_doubt,
    patch,
    plan,
    reason,
    verdicts,
    write_sglang,
)

from sglang_commfix.engine.register import Register


SCOPE = f"{MODULE}:LayerCommunicator.should_fuse"
EDITED = in_doubt(FAULTY)


def decided(
    register: Register, root: Path, text: str, version: str = "1.1", allow: Sequence[str] = ()
) -> str:
    made = plan(register, write_sglang(root, {FILE: text}, version), allow=allow)
    return verdicts(made)["1-guard"]


def test_source_of_an_affected_release_is_patched(register: Register, tmp_path: Path) -> None:
    made = plan(register, write_sglang(tmp_path, {FILE: FAULTY}))
    assert verdicts(made) == {"1-guard": "apply"}
    assert "that of sglang 1.1 to 1.2, which has the fault" in reason(made)


@pytest.mark.parametrize("version", ["1.3", "0.0.0.dev1+gdce8b0606", "9.9", "not a version"])
def test_the_version_string_does_not_decide(
    register: Register, tmp_path: Path, version: str
) -> None:
    assert decided(register, tmp_path / "a", FAULTY, version) == "apply"
    assert decided(register, tmp_path / "b", FIXED, version) == "not-needed"


def test_source_with_the_fix_is_left_alone(register: Register, tmp_path: Path) -> None:
    made = plan(register, write_sglang(tmp_path, {FILE: FIXED}, "1.3"))
    assert verdicts(made) == {"1-guard": "not-needed"}
    assert reason(made) == "sglang has the fix since 1.3"
    assert made.unneeded


def test_a_fault_of_upstreams_own_fix_is_named_with_its_repair(tmp_path: Path) -> None:
    upstream = Upstream()
    upstream.releases["1.4"] = {MODULE: dedented(FIXED.replace("is True", ""))}
    repair = patch("2-repair", affected=">=1.3,<1.4", fixed_in="1.4", fixes=[1])
    repair["edit"] = [edit(find=GUARD.replace(":", " is True:"), replace=GUARD)]
    repair["sound"] = [
        MENDED | {"find": GUARD, "releases": ">=1.4"},
        {"module": MODULE, "unmentioned": ["scattered"], "why": "the fix is not there"},
    ]
    first = patch(sound=[MENDED | {"releases": ">=1.3,<1.4"}, MENDED | {"find": GUARD}, GONE])
    register = upstream.register(tmp_path / "patches", first, repair)

    made = plan(register, write_sglang(tmp_path / "old", {FILE: FAULTY}))
    assert verdicts(made) == {"1-guard": "apply", "2-repair": "not-needed"}
    made = plan(register, write_sglang(tmp_path / "new", {FILE: FIXED}, "1.3"))
    assert verdicts(made) == {"1-guard": "not-needed", "2-repair": "apply"}
    assert reason(made) == "sglang has the fix since 1.3, with a fault that 2-repair repairs"
    assert not made.unneeded


def test_source_that_never_had_the_fault_is_left_alone(tmp_path: Path) -> None:
    before = FAULTY.replace("size > 0", "bool(size)")
    upstream = Upstream()
    upstream.releases["1.0"] = {MODULE: dedented(before)}
    scope = {"module": MODULE, "scope": "LayerCommunicator.should_fuse"}
    other = scope | {"find": "return bool(size)", "releases": "<1.1", "why": "it says so itself"}
    register = upstream.register(tmp_path / "patches", patch(sound=[other, MENDED, GONE]))
    made = plan(register, write_sglang(tmp_path, {FILE: before}, "1.0"))
    assert verdicts(made) == {"1-guard": "not-needed"}
    assert reason(made) == "the source is that of sglang 1.0, which does not have the fault"


def test_a_fault_that_no_release_has_mended_is_sound_where_it_never_was(tmp_path: Path) -> None:
    upstream = Upstream()
    upstream.releases["1.3"] = {MODULE: dedented(FAULTY)}
    never = {**GONE, "releases": "<1.1"}
    unmended = patch(affected=">=1.1", sound=[never])
    del unmended["fixed_in"]
    register = upstream.register(tmp_path / "patches", unmended)
    newest = plan(register, write_sglang(tmp_path / "a", {FILE: FAULTY}, "1.3"))
    oldest = plan(register, write_sglang(tmp_path / "b", {FILE: "x = 1\n"}, "1.0"))

    assert verdicts(newest) == {"1-guard": "apply"}
    assert verdicts(oldest) == {"1-guard": "not-needed"}
    assert reason(oldest) == "the source is that of sglang 1.0, which does not have the fault"


@pytest.mark.parametrize("version", ["1.0", "1.9"])
def test_where_nothing_of_it_all_is_nothing_is_needed(
    register: Register, tmp_path: Path, version: str
) -> None:
    made = plan(register, write_sglang(tmp_path, {}, version))
    assert verdicts(made) == {"1-guard": "not-needed"}


@pytest.mark.parametrize("version", ["1.1", "1.2.post1"])
def test_an_absent_target_in_an_affected_release_is_a_broken_sglang(
    register: Register, tmp_path: Path, version: str
) -> None:
    made = plan(register, write_sglang(tmp_path, {}, version))
    assert verdicts(made) == {"1-guard": "refused"}
    assert "should have" in reason(made)


def test_a_module_that_only_another_releases_edits_need_may_be_absent(tmp_path: Path) -> None:
    """As where a function has moved to another file since."""
    upstream = Upstream()
    later = "sglang.srt.utils.common"
    upstream.releases["1.2"] |= {later: "def make():\n    return 1\n"}
    moved = edit(module=later, scope="make", find="return 1", before="x = 1\n", releases=">=1.2")
    register = upstream.register(tmp_path / "patches", patch(edit=[edit(), moved]))
    old = plan(register, write_sglang(tmp_path / "a", {FILE: FAULTY}, "1.1"))
    new = plan(register, write_sglang(tmp_path / "b", {FILE: FAULTY}, "1.2"))

    assert verdicts(old) == {"1-guard": "apply"}
    assert verdicts(new) == {"1-guard": "refused"}
    assert "should have sglang.srt.utils.common" in reason(new)


def test_a_function_that_was_edited_elsewhere_is_patched(
    register: Register, tmp_path: Path
) -> None:
    made = plan(register, write_sglang(tmp_path, {FILE: ELSEWHERE}))
    assert verdicts(made) == {"1-guard": "apply"}
    assert reason(made) == f"as in sglang 1.1 to 1.2 where it matters; {SCOPE} changed elsewhere"


def test_edited_source_is_refused_with_what_to_do(register: Register, tmp_path: Path) -> None:
    made = plan(register, write_sglang(tmp_path, {FILE: EDITED}))
    assert verdicts(made) == {"1-guard": "refused"}
    assert f"what line 12 relies on in {SCOPE} is as in no release" in reason(made)
    assert "`sglang-commfix lock --allow 1-guard`" in reason(made)
    assert not made.modules


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("1.1", "(this sglang says it is 1.1)"),
        ("no version", "(this sglang does not say which version it is)"),
        ("0.9.post2", "sglang 0.9.post2 is older than 1.0, the oldest release that sglang-commfix"),
    ],
)
def test_a_refusal_says_of_which_sglang_it_speaks(
    register: Register, tmp_path: Path, version: str, said: str
) -> None:
    made = plan(register, write_sglang(tmp_path, {FILE: EDITED}, version))
    assert said in reason(made)


def test_edited_source_is_patched_if_the_user_allows_it(register: Register, tmp_path: Path) -> None:
    allowed = ["1-guard"]
    assert decided(register, tmp_path / "a", EDITED, allow=allowed) == "apply"
    without = EDITED.replace("size = batch.size", "size = len(batch)")
    assert decided(register, tmp_path / "b", without, allow=allowed) == "refused"
    twice = EDITED.replace("return size", "size = batch.size\n        return size")
    assert decided(register, tmp_path / "c", twice, allow=allowed) == "refused"


def test_a_change_outside_every_target_is_none_of_our_business(
    register: Register, tmp_path: Path
) -> None:
    assert decided(register, tmp_path, FAULTY.replace("return 1", "return 2")) == "apply"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", "cannot be parsed"),
        (b"\xff\xfe\x00", "cannot be decoded"),
        (FAULTY + "\n\nclass LayerCommunicator: pass\n", "defined more than once"),
    ],
)
def test_unreadable_source_is_refused(
    register: Register, tmp_path: Path, text: str | bytes, message: str
) -> None:
    made = plan(register, write_sglang(tmp_path, {FILE: text}))
    assert verdicts(made) == {"1-guard": "refused"}
    assert message in reason(made)


def test_byte_code_without_source_is_refused(register: Register, tmp_path: Path) -> None:
    root = write_sglang(tmp_path, {FILE: FAULTY})
    file = root / "sglang" / FILE
    file.rename(file.with_suffix(".pyc"))
    made = plan(register, root)
    assert verdicts(made) == {"1-guard": "refused"}
    assert "byte code without its source" in reason(made)


class TestTheOtherSide:
    """The edited function alone does not show the fault: another one does."""

    @pytest.fixture
    def register(self, tmp_path: Path) -> Register:
        upstream = Upstream()
        upstream.releases["1.0"] = {MODULE: dedented(FAULTY).replace("return 1", "return 0")}
        other = {"module": MODULE, "scope": "LayerCommunicator.other"}
        faulty = [other | {"find": "return 1", "why": "it adds up"}]
        before = other | {"find": "return 0", "releases": "<1.1", "why": "nobody adds up"}
        made = patch(faulty=faulty, sound=[before, MENDED, GONE])
        return upstream.register(tmp_path / "patches", made)

    def test_the_same_function_beside_another_one_is_not_needed(
        self, register: Register, tmp_path: Path
    ) -> None:
        assert decided(register, tmp_path / "a", FAULTY) == "apply"
        assert (
            decided(register, tmp_path / "b", FAULTY.replace("return 1", "return 0"))
            == "not-needed"
        )

    def test_an_unknown_other_side_is_refused(self, register: Register, tmp_path: Path) -> None:
        made = plan(
            register, write_sglang(tmp_path, {FILE: FAULTY.replace("return 1", "return 7")})
        )
        assert verdicts(made) == {"1-guard": "refused"}
        assert f"what it looks for stands nowhere in {MODULE}:LayerCommunicator.other" in reason(
            made
        )

    @pytest.mark.parametrize(
        ("given", "decision"), [({}, "refused"), ({"size": "as it comes"}, "apply")]
    )
    def test_names_of_it_that_are_given_are_taken_as_they_come(
        self, tmp_path: Path, given: dict[str, str], decision: str
    ) -> None:
        fused = {"module": MODULE, "scope": "LayerCommunicator.fused", "why": "", "given": given}
        text = FAULTY + "\n    def fused(self):\n        size = 1\n        return size\n"
        upstream = Upstream()
        upstream.releases |= {version: {MODULE: dedented(text)} for version in ("1.1", "1.2")}
        made = patch(faulty=[fused | {"find": "return size"}])
        register = upstream.register(tmp_path / "patches", made)

        assert decided(register, tmp_path, text.replace("size = 1", "size = 2")) == decision

    def test_a_fix_beside_a_form_of_the_other_side_that_no_release_has_with_it_is_a_fix(
        self, register: Register, tmp_path: Path
    ) -> None:
        for value in ("0", "7"):
            text = FIXED.replace("return 1", f"return {value}")
            made = plan(register, write_sglang(tmp_path / value, {FILE: text}))
            assert verdicts(made) == {"1-guard": "not-needed"}
        assert reason(made) == f"it is not fused ({SCOPE}, line 11)"

    @pytest.mark.parametrize("version", ["1.9", "0.0.0.dev1+g0123456"])
    @pytest.mark.parametrize("other", ["return 1", "return 7"])
    def test_a_renamed_function_proves_nothing(
        self, register: Register, tmp_path: Path, version: str, other: str
    ) -> None:
        text = FAULTY.replace("def should_fuse", "def may_fuse").replace("return 1", other)
        text += "\n    def fuse(self, batch):\n        return self.should_fuse(batch)\n"
        made = plan(register, write_sglang(tmp_path, {FILE: text}, version))
        assert verdicts(made) == {"1-guard": "refused"}
        assert f"what it looks for stands nowhere in {SCOPE}" in reason(made)


class TestVariants:
    """Releases take different edits; unknown source takes the only one that matches."""

    @pytest.fixture
    def register(self, tmp_path: Path, upstream: Upstream) -> Register:
        upstream.releases["1.2"] = {MODULE: dedented(FAULTY).replace("size = ", "count = size = ")}
        edits = [
            edit(releases="<1.2"),
            edit(releases=">=1.2", find="count = size = batch.size", after="second\n"),
        ]
        return upstream.register(tmp_path / "patches", patch(edit=edits))

    @pytest.mark.parametrize(
        ("old", "added"), [("size", GUARD.split()[0]), ("count = size", "second")]
    )
    def test_the_fingerprint_chooses(
        self, register: Register, tmp_path: Path, old: str, added: str
    ) -> None:
        text = FAULTY.replace("size = batch", f"{old} = batch")
        made = plan(register, write_sglang(tmp_path, {FILE: text}))
        assert verdicts(made) == {"1-guard": "apply"}
        assert added in made.modules[MODULE].after.decode()

    def test_unknown_source_takes_the_variant_that_matches(
        self, register: Register, tmp_path: Path
    ) -> None:
        text = EDITED.replace("size = batch", "count = size = batch")
        root = write_sglang(tmp_path, {FILE: text})
        made = plan(register, root, allow=["1-guard"])
        assert "second" in made.modules[MODULE].after.decode()


# An exit more takes nothing from another that answers the same.
MORE = "if self.more:\n    return False\n"


class TestPatchedOnDisk:
    """A tree that was patched with an exported diff is recognised."""

    def patched(self, register: Register, root: Path, *, select: str = "all") -> Path:
        for module in plan(register, root, select).modules.values():
            module.path.write_bytes(module.after)
        return root

    def test_it_needs_nothing(self, register: Register, faulty: Path) -> None:
        made = plan(register, self.patched(register, faulty))
        assert verdicts(made) == {"1-guard": "not-needed"}
        assert "is there already, as after `sglang-commfix export`" in reason(made)
        assert made.unneeded

    def test_an_edit_elsewhere_on_top_changes_nothing(
        self, register: Register, faulty: Path
    ) -> None:
        file = self.patched(register, faulty) / "sglang" / FILE
        file.write_text(file.read_text().replace("size > 0", "size > 1"))
        assert verdicts(plan(register, faulty)) == {"1-guard": "not-needed"}

    @pytest.mark.parametrize(
        "place",
        [{"find": "return size > 0", "before": MORE}, {"find": "size = batch.size", "after": MORE}],
    )
    @pytest.mark.parametrize("select", ["1-guard", "2-more", "all"])
    def test_patches_of_one_function_are_told_apart(
        self, tmp_path: Path, upstream: Upstream, faulty: Path, select: str, place: dict[str, str]
    ) -> None:
        more = patch("2-more", edit=[edit(**place)])
        register = upstream.register(tmp_path / "patches", patch(), more)
        both = plan(register, faulty).modules[MODULE].after.decode()
        made = plan(register, self.patched(register, faulty, select=select))
        named = {"1-guard", "2-more"} if select == "all" else {select}
        for name, verdict in verdicts(made).items():
            assert verdict == ("not-needed" if name in named else "apply")
        if made.modules and "before" in place:
            assert made.modules[MODULE].after.decode() == both

    @pytest.mark.parametrize("between", ["", "pass\n        "])
    def test_the_same_text_elsewhere_in_the_function_is_not_what_a_patch_has_put_in(
        self, tmp_path: Path, between: str
    ) -> None:
        guard = f"if self.scattered:\n            return False\n        {between}"
        text = FAULTY.replace("size = batch", f"{guard}size = batch")
        upstream = Upstream()
        upstream.releases |= {version: {MODULE: dedented(text)} for version in ("1.1", "1.2")}
        register = upstream.register(tmp_path / "patches", patch())

        assert decided(register, tmp_path, text) == "apply"

    def test_a_damaged_file_of_another_patch_does_not_hide_it(
        self, tmp_path: Path, upstream: Upstream, faulty: Path
    ) -> None:
        elsewhere = {"module": "sglang.srt.other", "scope": "f", "find": "a = 1", "after": "b()"}
        for release in ("1.1", "1.2"):
            upstream.releases[release]["sglang.srt.other"] = "def f():\n    a = 1\n"
        register = upstream.register(
            tmp_path / "patches", patch(), patch("2-other", edit=[elsewhere])
        )
        self.patched(
            register, write_sglang(faulty, {"srt/other.py": "def f(:\n"}), select="1-guard"
        )
        assert verdicts(plan(register, faulty)) == {"1-guard": "not-needed", "2-other": "refused"}

    def test_appended_code_has_to_be_there_too(
        self, tmp_path: Path, upstream: Upstream, faulty: Path
    ) -> None:
        edits = [edit(), {"module": MODULE, "append": "helper.py"}]
        register = upstream.register(
            tmp_path / "patches", patch(edit=edits), helper="def helper():\n    return 1\n"
        )
        file = self.patched(register, faulty) / "sglang" / FILE
        assert verdicts(plan(register, faulty)) == {"1-guard": "not-needed"}
        file.write_text(file.read_text().replace("def helper", "def renamed"))
        assert verdicts(plan(register, faulty)) == {"1-guard": "refused"}


def test_a_feature_that_nobody_asked_for_does_not_keep_the_package_installed(
    tmp_path: Path, upstream: Upstream, faulty: Path
) -> None:
    register = upstream.register(tmp_path / "patches", patch(kind="feature"))
    assert plan(register, faulty, "1").unneeded
    assert not plan(register, faulty, "all").unneeded
