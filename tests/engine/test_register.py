from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rig.stand_in import MODULE, Upstream, edit, patch

from sglang_commfix.engine.errors import RegisterError
from sglang_commfix.engine.register import load_folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "magic"}, "kind is 'magic', which is none of correctness, stability"),
        ({"affected": "all of them"}, "Invalid specifier"),
        ({"requires": ["9-absent"]}, "names 9-absent, which is not in patches/"),
        ({"conflicts": ["9-absent"]}, "names 9-absent, which is not in patches/"),
        ({"edit": [edit(find="x", replace="y", after="z")]}, "an edit has exactly one of"),
        ({"edit": [{"module": MODULE, "scope": "f", "find": "x"}]}, "an edit has exactly one of"),
        ({"edit": [{"module": MODULE, "find": "x", "after": "y"}]}, "append goes with a module"),
        ({"edit": [{"module": MODULE, "append": "absent.py"}]}, "No such file"),
        ({"edit": [edit(), edit(find="size = batch.size", before="pass")]}, "have one anchor"),
        ({"edit": [edit(after="def (:")]}, "invalid syntax"),
        ({"edit": [edit(after="x = 'é'")]}, "not ASCII"),
        ({"difference": [{"decision": "d", "when": "a >", "why": ""}]}, "invalid syntax"),
        ({"difference": [{"decision": "d", "when": "a"}]}, "'why' is missing"),
        ({"edit": [{"scope": "f", "find": "x", "after": "y"}]}, "'module' is missing"),
    ],
)
def test_a_faulty_entry_is_named_with_its_fault(
    tmp_path: Path, upstream: Upstream, changes: dict[str, Any], message: str
) -> None:
    data = patch(**changes)
    try:
        upstream.register(tmp_path, data)
    except RegisterError as error:
        assert "1-guard" in str(error)
        assert message in str(error)
    except KeyError:  # the helper that writes the fingerprints needs what is missing
        with pytest.raises(RegisterError, match=message):
            load_folder(tmp_path)
    else:
        pytest.fail("the entry was accepted")


def test_what_fixes_upstreams_version_affects_no_release_without_it(
    tmp_path: Path, upstream: Upstream
) -> None:
    message = "2-repair: it fixes upstream's version of #1, which sglang 1.1 to 1.2 has not"
    with pytest.raises(RegisterError, match=message):
        upstream.register(tmp_path, patch(), patch("2-repair", fixes=[1]))


def test_a_text_for_people_may_not_be_missing(tmp_path: Path, upstream: Upstream) -> None:
    data = patch()
    del data["symptom"]
    with pytest.raises(RegisterError, match="'symptom' is missing"):
        upstream.register(tmp_path, data)


def test_an_id_is_the_name_of_its_folder(tmp_path: Path, upstream: Upstream) -> None:
    upstream.register(tmp_path)
    (tmp_path / "1-guard").rename(tmp_path / "1-other")
    with pytest.raises(RegisterError, match="'1-guard' is not the folder's name"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ('{"m:f": [["1.0", "1.1", "a"]]}', "does not cover every release"),
        ('{"m:f": [["1.0", "1.1", "a"], ["1.3", "1.3", "b"]]}', "1.3 does not follow"),
        ('{"m:f": [["1.0", "7.7", "a"]]}', "m:f: .* is no run from a release to a release"),
        ("{", "Expecting property name"),
    ],
)
def test_fingerprints_cover_every_release(
    tmp_path: Path, upstream: Upstream, runs: str, message: str
) -> None:
    upstream.register(tmp_path)
    (tmp_path / "1-guard" / "fingerprints.json").write_text(runs)
    with pytest.raises(RegisterError, match=message):
        load_folder(tmp_path)


def test_a_target_without_fingerprints_is_named(tmp_path: Path, upstream: Upstream) -> None:
    upstream.register(tmp_path)
    (tmp_path / "1-guard" / "fingerprints.json").unlink()
    message = f"fingerprints.json lacks {MODULE} #.*: run tools/finger"
    with pytest.raises(RegisterError, match=message):
        load_folder(tmp_path)
    assert load_folder(tmp_path, complete=False).patches[0].id == "1-guard"


def test_an_empty_folder_is_a_damaged_installation(tmp_path: Path) -> None:
    with pytest.raises(RegisterError, match="reinstall sglang-commfix"):
        load_folder(tmp_path)


def test_an_entry_can_go_where_no_fault_meets_its_launches_any_more(
    tmp_path: Path, upstream: Upstream
) -> None:
    beside = [
        {"id": "2-later", "when": "with stages"},
        {"id": "3-earlier", "when": "with experts"},
        {"id": "4-open", "when": "with a draft"},
    ]
    unmended = patch("4-open", affected=">=1.1")
    del unmended["fixed_in"]
    upstream.releases["1.4"] = upstream.releases["1.3"]
    register = upstream.register(
        tmp_path,
        patch(beside=beside),
        patch("2-later", affected=">=1.1,<1.4", fixed_in="1.4"),
        patch("3-earlier", fixed_in="1.3"),
        unmended,
    )

    assert register.safe(register["1-guard"]) == (
        ("1.3", ""),
        ("1.4", "with stages"),
        (None, "with a draft"),
    )
    assert register.drop(register["1-guard"]) == (
        "When sglang is 1.3 or newer; with stages, 1.4; with a draft, not yet."
    )
    assert register.drop(register["4-open"]) == "Not yet: no release has a fix."
