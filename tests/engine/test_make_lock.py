"""What a lock holds: digests, decisions and bytes, and all that a selection may need."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
from pathlib import Path

import pytest
from rig.stand_in import (
    FAULTY,
    FILE,
    GONE,
    GUARD,
    MODULE,
    Upstream,
    dedented,
    edit,
    patch,
    write_sglang,
)

from sglang_commfix.engine import make_lock as make_lock_module
from sglang_commfix.engine.errors import AnchorError, RegisterError
from sglang_commfix.engine.make_lock import make_lock
from sglang_commfix.engine.register import Register
from sglang_commfix.engine.rewrite import Change
from sglang_commfix.engine.shipped import pretty, put_together, read, write
from sglang_commfix.engine.source import Source
from sglang_commfix.engine.tree import Tree
from sglang_commfix.files import KEY, Sglang, splice
from sglang_commfix.lock import Lock
from sglang_commfix.run.host import Settings
from sglang_commfix.run.plan import select


ADDED = "        if self.scattered:\n            return False\n"


def lock_of(register: Register, root: Path, *allow: str) -> Lock:
    return make_lock(register, Tree(Sglang(root / "sglang")), allow)


def text_after(lock: Lock, root: Path, words: str = "all") -> bytes:
    return select(Sglang(root / "sglang"), Settings(words), lock, "").modules[MODULE].after


def test_it_holds_the_digest_of_every_file_that_a_decision_stands_on(
    tmp_path: Path, upstream: Upstream
) -> None:
    gone = {"module": "sglang.srt.other", "unmentioned": ["f"], "why": "there is no other side"}
    appended = {"module": "sglang.srt.third", "append": "added.py"}
    entry = patch(edit=[edit(), appended], faulty=[gone])
    register = upstream.register(tmp_path / "patches", entry, added="x = 1\n")
    root = write_sglang(tmp_path, {FILE: FAULTY, "srt/third.py": "\n"})
    (decision,) = lock_of(register, root)["decisions"]
    faulty, third = ((root / "sglang" / name).read_bytes() for name in (FILE, "srt/third.py"))
    assert decision["modules"] == {
        MODULE: hashlib.sha256(faulty).hexdigest(),
        "sglang.srt.third": hashlib.sha256(third).hexdigest(),
        "sglang.srt.other": None,
    }


@pytest.mark.parametrize("place", ["srt/other.py", "srt/other/__init__.py"])
def test_a_module_that_must_be_absent_is_absent_as_a_file_and_as_a_folder(
    tmp_path: Path, upstream: Upstream, place: str
) -> None:
    register = upstream.register(
        tmp_path / "patches", patch(faulty=[GONE | {"module": "sglang.srt.other"}])
    )
    root = write_sglang(tmp_path, {FILE: FAULTY})
    (decision,) = lock_of(register, root)["decisions"]
    assert not Sglang(root / "sglang").differing(decision["modules"])
    file = root / "sglang" / place
    file.parent.mkdir(exist_ok=True)
    file.touch()
    assert Sglang(root / "sglang").differing(decision["modules"]) == [file]


def test_that_nothing_is_there_is_no_proof_without_a_file_that_is(
    register: Register, tmp_path: Path
) -> None:
    root = write_sglang(tmp_path, {"srt/model_executor/model_runner.py": "x = 1\n"}, "1.9")
    (decision,) = lock_of(register, root)["decisions"]
    assert decision["decision"] == "not-needed"
    assert decision["modules"][MODULE] is None
    assert decision["modules"][KEY] is not None


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("plain", dedented(FAULTY).encode(), ADDED.encode()),
        ("windows", dedented(FAULTY).replace("\n", "\r\n").encode(), ADDED.replace("\n", "\r\n").encode()),
        ("mark", b"\xef\xbb\xbf" + dedented(FAULTY).encode(), ADDED.encode()),
        ("not ASCII", dedented(FAULTY).replace("A class", "Ünïcode 中文 𝄞").encode(), ADDED.encode()),
        ("tabs", dedented(FAULTY).replace("    ", "\t").encode(), ADDED.replace("    ", "\t", 2).encode()),
        (
            "latin-1",
            b"# coding: latin-1\n" + dedented(FAULTY).replace("A class", "Ünïcode").encode("latin-1"),
            ADDED.encode(),
        ),
    ],
)  # fmt: skip
def test_splices_are_bytes_whatever_the_encoding_and_the_line_ends(
    register: Register, tmp_path: Path, name: str, raw: bytes, expected: bytes
) -> None:
    root = write_sglang(tmp_path, {FILE: raw})
    lock = json.loads(pretty(lock_of(register, root)))
    (decision,) = lock["decisions"]
    assert decision["decision"] == "apply", decision["reason"]
    after = splice(raw, decision["splices"])
    if name == "tabs":
        expected = b"\t\tif self.scattered:\n\t\t    return False\n"
    assert expected in after
    assert after.replace(expected, b"") == raw
    compile(after, name, "exec")


def test_two_that_touch_one_statement_are_a_conflict_in_the_lock(
    tmp_path: Path, upstream: Upstream, faulty: Path
) -> None:
    one = patch("1-guard", edit=[edit(find="size = batch.size", replace="size = 1")])
    two = patch("2-more", edit=[edit(find="size = batch.size", after="more()")])
    other = patch("3-apart", edit=[edit(find="return size > 0", before="pass")])
    lock = lock_of(upstream.register(tmp_path / "patches", one, two, other), faulty)
    assert [d["decision"] for d in lock["decisions"]] == ["apply"] * 3
    assert lock["conflicts"] == [["1-guard", "2-more", "1-guard and 2-more both change line 11"]]
    both, apart, alone = "1-guard,2-more", "1-guard,3-apart", "2-more"
    for words, applied in ((both, ""), (apart, apart), (alone, alone)):
        made = select(Sglang(faulty / "sglang"), Settings(words), lock, "")
        assert ",".join(patch["id"] for patch in made.having("apply")) == applied


@pytest.mark.parametrize("operation", ["before", "after"])
def test_insertions_at_one_place_stand_in_the_order_of_the_register_in_any_selection(
    tmp_path: Path, upstream: Upstream, faulty: Path, operation: str
) -> None:
    names = ["5-e", "3-c", "4-d", "1-a", "2-b"]  # ordered by `order`, not by id
    entries = [
        patch(name, order=number, edit=[edit(find="size = batch.size", **{operation: f"call({number})"})])
        for number, name in enumerate(names)
    ]  # fmt: skip
    register = upstream.register(tmp_path / "patches", *entries)
    lock = lock_of(register, faulty)
    for count in range(1, len(names) + 1):
        for chosen in itertools.permutations(names, count):
            text = text_after(lock, faulty, ",".join(chosen)).decode()
            numbers = [names.index(name) for name in names if name in chosen]
            found = [line.strip() for line in text.splitlines() if "call(" in line]
            assert found == [f"call({number})" for number in numbers]


def test_edits_that_cannot_be_made_at_once_are_refused_and_the_others_are_not(
    tmp_path: Path, upstream: Upstream, faulty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"module": "sglang.srt.other", "scope": "f", "find": "a = 1", "after": "b()"}
    for release in ("1.1", "1.2"):
        upstream.releases[release]["sglang.srt.other"] = "def f():\n    a = 1\n"
    more = patch("2-more", edit=[edit(find="return size > 0", before="pass")])
    register = upstream.register(
        tmp_path / "patches", patch(), more, patch("3-other", edit=[there])
    )
    root = write_sglang(faulty, {"srt/other.py": "def f():\n    a = 1\n"})
    rewrite = make_lock_module.rewrite

    def fail(
        source: Source, syntax: ast.Module, changes: list[Change], *, compiled: bool
    ) -> Source:
        if len({change.owner for change in changes}) > 1:
            raise AnchorError("not at once")
        return rewrite(source, syntax, changes, compiled=compiled)

    monkeypatch.setattr(make_lock_module, "rewrite", fail)
    decisions = {d["id"]: d for d in lock_of(register, root)["decisions"]}
    for name in ("1-guard", "2-more"):
        assert decisions[name]["decision"] == "refused"
        assert decisions[name]["reason"] == "not at once"
        assert not decisions[name]["splices"]
    assert decisions["3-other"]["decision"] == "apply"


def test_what_is_written_beside_an_entry_is_read_as_it_was_made(
    tmp_path: Path, upstream: Upstream
) -> None:
    folder = tmp_path / "patches"
    register = upstream.register(folder)
    locks = {
        release: lock_of(register, write_sglang(tmp_path / release, {FILE: text[MODULE]}, release))
        for release, text in upstream.releases.items()
    }
    decisions = {release: lock["decisions"][0] for release, lock in locks.items()}
    (folder / "1-guard" / "locks.json").write_text(write(register["1-guard"], decisions))
    there = list(read(folder, register["1-guard"]))
    assert [releases for releases, _ in there] == [["1.0"], ["1.1", "1.2"], ["1.3"]]
    for releases, decision in there:
        assert all(decisions[release] == decision for release in releases)
    written = write(register["1-guard"], decisions)
    assert written.count(GUARD.splitlines()[0]) == 1  # each text once, to be read


def test_what_is_written_beside_an_entry_counts_for_nothing_once_the_entry_has_changed(
    tmp_path: Path, upstream: Upstream, faulty: Path
) -> None:
    folder = tmp_path / "patches"
    register = upstream.register(folder)
    decision = lock_of(register, faulty)["decisions"][0]
    (folder / "1-guard" / "locks.json").write_text(write(register["1-guard"], {"1.1": decision}))
    (folder / "keys.json").write_text('{"1.1": "0123456789abcdef"}')
    files = put_together(register, folder)
    packed = [data for name, data in files.items() if name.endswith(".gz")]
    assert {data[:10] for data in packed} == {bytes.fromhex("1f8b08000000000002ff")}
    assert list(read(folder, register["1-guard"]))
    changed = upstream.register(folder, patch(edit=[edit(after="if self.more:\n    return\n")]))
    assert not list(read(folder, changed["1-guard"]))
    with pytest.raises(RegisterError, match="1-guard is not current: run tools"):
        put_together(changed, folder)
    reworded = upstream.register(folder, patch(title="other words"))
    assert list(read(folder, reworded["1-guard"]))


def test_edits_that_cannot_be_made_are_refused_with_the_reason(
    tmp_path: Path, upstream: Upstream, faulty: Path
) -> None:
    entry = patch(edit=[edit(find="absent()", after="pass")])
    (decision,) = lock_of(upstream.register(tmp_path / "patches", entry), faulty)["decisions"]
    assert (decision["decision"], decision["splices"]) == ("refused", [])
    assert "stands nowhere" in decision["reason"]
