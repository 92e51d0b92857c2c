"""A child process runs what its parent runs, of the same sglang, or says that it does not.

What ranks say to each other is in tests/servers/test_fleet.py, on real process groups.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from fake import FILE, FIXED, dedented, patch
from processes import Site, make_site
from test_activation import PATCHED, SHOW


def parent(child: str, between: str = "") -> str:
    """A program that imports sglang, then starts one that does the same."""
    return f"""\
import os, subprocess, sys
{SHOW}
sys.stdout.flush()
{between}
done = subprocess.run([sys.executable, "-c", {child!r}])
print("child:", done.returncode)
"""


def digests(log: str) -> list[str]:
    return [word.strip(";") for word in log.split() if word.startswith("commfix=")]


def test_the_log_line_has_the_digest_of_the_edited_text(site: Site) -> None:
    result = site.run(parent(SHOW))
    one, other = digests(result.stderr)
    assert one == other
    assert len(one) == len("commfix=3fa2c1")
    assert result.stdout == f"{PATCHED}{PATCHED}child: 0\n"


def test_it_is_the_same_for_another_entry_with_the_same_text(tmp_path: Path) -> None:
    one = make_site(tmp_path / "one")
    renamed = patch("2-the-same", kind="stability", title="another title")
    other = make_site(tmp_path / "other", renamed)
    assert digests(one.run(SHOW).stderr) == digests(other.run(SHOW).stderr)


def test_it_is_none_where_nothing_is_applied(site: Site) -> None:
    (site.root / "sglang" / FILE).write_text(dedented(FIXED))
    assert digests(site.run(SHOW).stderr) == ["commfix=none"]


@pytest.mark.parametrize(
    "between",
    [
        "os.environ['SGLANG_COMMFIX'] = '1,-1'",
        f"open(sys.modules['sglang.srt.layers.communicator'].__file__, 'w').write({dedented(FIXED)!r})",
    ],
    ids=["another selection", "another sglang in the same place"],
)
def test_a_child_that_runs_something_else_is_an_error(site: Site, between: str) -> None:
    before = (site.root / "sglang" / FILE).read_text()
    for strict, status in (("0", 0), ("1", 78)):
        (site.root / "sglang" / FILE).write_text(before)
        result = site.run(parent(SHOW, between), SGLANG_COMMFIX_STRICT=strict)
        assert f"child: {status}\n" in result.stdout
        (error,) = [line for line in result.stderr.splitlines() if " ERROR " in line]
        assert "its parent runs commfix=" in error
        assert "but this process commfix=none (without 1-guard)" in error


def test_a_child_with_another_sglang_is_not_judged(site: Site, tmp_path: Path) -> None:
    other = make_site(tmp_path / "other", files={FILE: FIXED})
    between = f"os.environ['PYTHONPATH'] = {str(other.root)!r}"
    result = site.run(parent(SHOW, between), SGLANG_COMMFIX_STRICT="1")
    assert "child: 0\n" in result.stdout
    assert " ERROR " not in result.stderr


@pytest.mark.parametrize(
    "value", ["", "{", "[]", "null", "3", json.dumps({"sglang": 1}), json.dumps({"entries": []})]
)
def test_a_value_that_is_not_ours_is_passed_over(site: Site, value: str) -> None:
    result = site.run(SHOW, SGLANG_COMMFIX_RUNS=value, SGLANG_COMMFIX_STRICT="1")
    assert (result.stdout, " ERROR " in result.stderr) == (PATCHED, False)


def test_children_of_multiprocessing_say_nothing_of_it(site: Site) -> None:
    code = f"""\
import multiprocessing

def child():
{textwrap.indent(SHOW, "    ")}

if __name__ == "__main__":
    import sglang.srt
    for method in ("spawn", "fork", "forkserver"):
        one = multiprocessing.get_context(method).Process(target=child)
        one.start()
        one.join()
"""
    result = site.run(code, SGLANG_COMMFIX_STRICT="1")
    assert result.stdout == PATCHED * 3
    assert " ERROR " not in result.stderr
