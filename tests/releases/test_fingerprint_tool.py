"""What the maintainer's tool says of a release that the register does not know yet."""

from __future__ import annotations

import pytest
from fingerprints import changes, wanted_files
from rig.sources.published import released

from sglang_commfix.engine.register import Target, load


SAME, GONE, NEW, BACK = (Target("m", name) for name in ("same", "gone", "new", "back"))
TABLE = {
    "1.0": {SAME: "a", GONE: "b", NEW: "c", BACK: "faulty"},
    "1.1": {SAME: "a", GONE: "b", NEW: "c", BACK: "fixed"},
    "1.2": {SAME: "a", GONE: None, NEW: "d", BACK: "faulty"},
    "1.3": {SAME: "a", GONE: None, NEW: "d", BACK: "faulty"},
}


def test_each_target_is_compared_with_the_release_before_and_with_all_earlier_ones() -> None:
    assert changes("1.2", "1.1", TABLE) == [
        "1.2  m:same  unchanged",
        "1.2  m:gone  GONE: where has it moved to?",
        "1.2  m:new  CHANGED (d): does it still have the fix, or the fault?",
        "1.2  m:back  CHANGED, to what 1.0 had: has a fix been lost?",
    ]


@pytest.mark.releases
def test_of_a_module_that_has_become_a_package_the_own_file_is_fetched() -> None:
    module = "sglang/srt/utils"
    assert {f"{module}.py", f"{module}/__init__.py"} <= {*wanted_files(load().patches)}
    assert (released("0.5.1") / f"{module}.py").is_file()
    assert (released("0.5.11") / module / "__init__.py").is_file()
