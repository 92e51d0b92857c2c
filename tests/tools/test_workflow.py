"""What the forge runs is what anybody runs, by pinned actions that may read the code and no more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.name)
class TestWorkflow:
    def test_each_action_is_pinned_to_a_commit_and_says_its_version(self, workflow: Path) -> None:
        used = re.findall(r"uses: (.*)", workflow.read_text())
        assert used
        for action in used:
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)

    def test_it_may_read_the_code_and_no_more(self, workflow: Path) -> None:
        text = workflow.read_text()
        assert re.findall(r"^( *)permissions:(.*)", text, re.MULTILINE) == [("", "")]
        assert "\npermissions:\n  contents: read\n\n" in text
        assert "persist-credentials: false" in text

    def test_it_runs_what_anybody_runs(self, workflow: Path) -> None:
        assert re.findall(r"run: (.*)", workflow.read_text()) == ["./.ci/run"]


def test_there_is_one() -> None:
    assert [file.name for file in WORKFLOWS] == ["ci.yml"]
