"""A user's own lock, in a process: taken whole, or not at all, and never replaced by the engine."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from fake import FILE, MODULE, Upstream, edit, in_doubt, patch
from processes import Site

from sglang_commfix.run.plan import OWN_NAME


SHOW = """
from sglang.srt.layers import communicator as c
print(getattr(c, "__commfix__", None))
"""
PATCHED, UNPATCHED = "('1-guard',)\n", "None\n"
LOCK = [sys.executable, "-m", "sglang_commfix", "lock"]


def make(site: Site, *options: str, check: bool = True) -> Path:
    site.command([*LOCK, *options], check=check)
    return site.root / OWN_NAME


def change(file: Path, **changes: Any) -> None:
    """Change the only decision in the lock."""
    lock = json.loads(file.read_text())
    lock["decisions"][0] |= changes
    file.write_text(json.dumps(lock))


@pytest.fixture
def edited(site: Site) -> Site:
    """A site whose function no release has so: the guard refuses it."""
    file = site.root / "sglang" / FILE
    file.write_text(in_doubt(file.read_text()))
    return site


def test_the_lock_beside_sglang_decides_and_the_engine_is_not_asked(site: Site) -> None:
    make(site)
    (site.register / "1-guard" / "patch.toml").write_text("the engine would choke on this")
    code = "import sglang_commfix.run.plan as p\n"
    code += f"p.engine = lambda: type('E', (), {{'index': lambda: {{'modules': [{MODULE!r}], "
    code += "'entries': []}})\n"
    assert site.run(code + SHOW).stdout == PATCHED


def test_what_its_owner_allowed_is_applied(edited: Site) -> None:
    assert edited.run(SHOW).stdout == UNPATCHED
    make(edited, "--allow", "1")
    result = edited.run(SHOW, SGLANG_COMMFIX_STRICT="1")
    assert result.stdout == PATCHED
    assert len(result.stderr.splitlines()) == 1


def test_it_may_lie_anywhere_and_the_variable_names_it(site: Site, tmp_path: Path) -> None:
    """As on a read-only root, or in a container with a mounted configuration."""
    file = tmp_path / "etc" / "lock.json"
    file.parent.mkdir()
    site.command([*LOCK, "-o", str(file)])
    assert not (site.root / OWN_NAME).exists()
    os.chmod(file, 0o444)
    change_of_code = site.root / "sglang" / FILE
    change_of_code.write_text(change_of_code.read_text() + "\n# later\n")
    assert site.run(SHOW).stdout == PATCHED  # decided anew
    result = site.run(SHOW, SGLANG_COMMFIX_LOCK=str(file))
    assert result.stdout == UNPATCHED  # it is not the lock of this tree any more
    assert f"{file} is not the lock of this sglang: {change_of_code} differs" in result.stderr


def damage_tree(site: Site, file: Path) -> str:
    (site.root / "sglang" / FILE).open("a").write("# edited\n")
    return f"is not the lock of this sglang: {site.root / 'sglang' / FILE} differs"


def damage_digest(site: Site, file: Path) -> str:
    change(file, modules={MODULE: "0" * 64})
    return "is not the lock of this sglang"


def damage_truncate(site: Site, file: Path) -> str:
    file.write_text(file.read_text()[:-100])
    return "is not JSON"


def damage_schema(site: Site, file: Path) -> str:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 2}))
    return "schema is 2, this version reads 1"


def damage_type(site: Site, file: Path) -> str:
    change(file, requires="24785")
    return "decisions[0]: requires is '24785', which is no list"


def damage_unknown_key(site: Site, file: Path) -> str:
    change(file, run="rm")
    return "decisions[0]: there should be id, pr, kind"


def damage_verdict(site: Site, file: Path) -> str:
    change(file, decision="maybe")
    return "decision is 'maybe'"


def damage_foreign_module(site: Site, file: Path) -> str:
    change(file, modules={MODULE: None, "os": None})
    return "no patch has to do with os"


def damage_path(site: Site, file: Path) -> str:
    lock = json.loads(file.read_text())
    lock["decisions"][0]["splices"][0]["module"] = "sglang...etc.passwd"
    file.write_text(json.dumps(lock))
    return "no patch has to do with sglang...etc.passwd"


def damage_splice(site: Site, file: Path) -> str:
    lock = json.loads(file.read_text())
    lock["decisions"][0]["splices"][0]["stop"] += 10
    file.write_text(json.dumps(lock))
    return f"{MODULE}: the lock does not fit its bytes"


def damage_beyond(site: Site, file: Path) -> str:
    lock = json.loads(file.read_text())
    lock["decisions"][0]["splices"][0] |= {"start": 10**9, "stop": 10**9}
    file.write_text(json.dumps(lock))
    return f"{MODULE}: the lock does not fit its bytes"


def damage_a_list(site: Site, file: Path) -> str:
    file.write_text("[]")
    return "there should be schema, made_by"


def damage_remove(site: Site, file: Path) -> str:
    file.unlink()
    file.mkdir()
    return "cannot be read"


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__[7:])
def test_a_lock_that_does_not_fit_applies_nothing_names_the_file_and_ends_a_strict_process(
    site: Site, damage: Any
) -> None:
    file = make(site)
    message = damage(site, file)
    result = site.run(SHOW)
    assert result.stdout == UNPATCHED
    assert len(result.stderr.splitlines()) == 1
    assert "ERROR sglang-commfix: " in result.stderr
    assert message in result.stderr
    assert "Nothing is applied" in result.stderr
    result = site.run(SHOW, check=False, SGLANG_COMMFIX_STRICT="1")
    assert (result.returncode, result.stdout) == (78, "")


def test_a_variable_that_names_a_missing_file_is_an_error(site: Site, tmp_path: Path) -> None:
    missing = tmp_path / "missing.json"
    result = site.run(SHOW, SGLANG_COMMFIX_LOCK=str(missing))
    assert result.stdout == UNPATCHED
    assert f"{missing} cannot be read: No such file or directory. Make it with" in result.stderr
    result = site.run(
        SHOW, check=False, SGLANG_COMMFIX_LOCK=str(missing), SGLANG_COMMFIX_STRICT="1"
    )
    assert result.returncode == 78


def test_entries_that_are_newer_than_the_lock_are_named_and_the_lock_stays_valid(
    site: Site,
) -> None:
    make(site)
    newer = patch("2-newer", edit=[edit(find="return size > 0", before="pass")])
    Upstream().register(site.register, patch(), newer)
    result = site.run(SHOW, SGLANG_COMMFIX_STRICT="1")
    assert result.stdout == PATCHED
    assert "applying 1-guard; not in your lock: 2-newer" in result.stderr
    result = site.run(SHOW, select="1,2-newer", SGLANG_COMMFIX_STRICT="1")
    assert result.stdout == PATCHED
    assert "not in your lock: 2-newer" in result.stderr


def test_hashed_and_spliced_are_the_same_bytes_read_once(site: Site) -> None:
    make(site)
    code = f"""
    import pathlib
    original, read = pathlib.Path.read_bytes, []
    def read_bytes(self):
        read.append(self.name)
        return original(self)
    pathlib.Path.read_bytes = read_bytes
    import sglang.srt
    print(read.count({Path(FILE).name!r}))
    """
    assert site.run(code).stdout == "1\n"


def test_an_embedder_may_name_it_and_gets_the_error_at_once(site: Site, tmp_path: Path) -> None:
    file = make(site)
    code = f"""
    import os, sglang_commfix
    from sglang_commfix.errors import LockError
    plan = sglang_commfix.activate(lock={str(file)!r})
    print(plan.origin, os.environ["SGLANG_COMMFIX_LOCK"])
    """
    assert site.run(code, select=None).stdout == f"{file} {file}\n"
    file.write_text("{")
    code = code.replace("plan = ", "try: plan = ").replace(
        "print(", "except LockError as error: print(error)\n    else: print("
    )
    out = site.run(code, select=None).stdout
    assert out.startswith(f"{file} is not JSON")
