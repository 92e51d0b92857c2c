"""The commands that make, check and take apart a lock."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from rig.stand_in import FAULTY, FILE, MODULE, Upstream, edit, in_doubt, patch, write_sglang

from sglang_commfix.command import cli, report, write_lock
from sglang_commfix.engine import shipped
from sglang_commfix.run.plan import OWN_NAME


@pytest.fixture(autouse=True)
def own_register(tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        patch(),
        patch("2-fast", kind="performance", edit=[edit(find="return size > 0", before="pass")]),
    ]
    loaded = upstream.register(tmp_path / "patches", *entries)
    for module in (cli, report, shipped, write_lock):
        monkeypatch.setattr(module, "load", lambda: loaded)
    monkeypatch.setattr("sglang_commfix.run.plan.SHIPPED", tmp_path / "nothing-shipped")
    monkeypatch.setattr(cli, "SHIPPED", tmp_path)
    for name in ("", "_STRICT", "_LOCK", "_LOG"):
        monkeypatch.delenv(f"SGLANG_COMMFIX{name}", raising=False)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    return write_sglang(tmp_path / "odd", {FILE: in_doubt(FAULTY)})


def test_it_is_written_beside_sglang_and_says_what_it_decides(
    faulty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["lock", "--sglang-path", str(faulty)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{faulty / OWN_NAME}: the lock of sglang 1.1 at {faulty / 'sglang'}\n")
    assert "apply       1-guard: the source is that of sglang 1.1 to 1.2" in out
    lock = json.loads((faulty / OWN_NAME).read_text())
    assert lock["decisions"][0]["splices"][0]["text"] == [
        "        if self.scattered:\n",
        "            return False\n",
    ]
    assert list(faulty.iterdir()) != []
    assert cli.main(["status", "--sglang-path", str(faulty)]) == 0
    assert f"Decided by your lock, {faulty / OWN_NAME}" in capsys.readouterr().out


def test_status_diff_and_export_read_the_same_lock(
    faulty: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    cli.main(["lock", "--sglang-path", str(faulty)])
    file = faulty / OWN_NAME
    file.write_text(file.read_text().replace("self.scattered", "self.by_lock"))
    capfdbinary.readouterr()
    assert cli.main(["diff", "--sglang-path", str(faulty)]) == 0
    diff = capfdbinary.readouterr().out
    assert b"+        if self.by_lock:\n" in diff
    assert cli.main(["export", "--sglang-path", str(faulty), "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").read_bytes() == diff
    file.write_text(file.read_text().replace("by_lock", "scattered")[:-30])
    capfdbinary.readouterr()
    for command in (["status"], ["diff"], ["export", "-o", str(tmp_path / "out")]):
        assert cli.main([*command, "--sglang-path", str(faulty)]) == 1
        assert b"is not JSON" in capfdbinary.readouterr().err


def test_what_the_guard_refuses_needs_to_be_allowed_by_name(
    odd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["lock", "--sglang-path", str(odd)]) == 1
    assert "refused     1-guard" in capsys.readouterr().out
    assert cli.main(["lock", "--sglang-path", str(odd), "--allow", "1"]) == 0
    assert "apply       1-guard: allowed although" in capsys.readouterr().out
    assert json.loads((odd / OWN_NAME).read_text())["allowed"] == ["1-guard"]
    assert cli.main(["lock", "--sglang-path", str(odd), "--select", "-1"]) == 0
    assert cli.main(["lock", "--sglang-path", str(odd), "--allow", "nonsense"]) == 2
    assert "'nonsense' is unknown" in capsys.readouterr().err


def test_check_makes_it_again_and_tells_each_difference(
    odd: Path, tmp_path: Path, upstream: Upstream, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ["lock", "--check", "--sglang-path", str(odd)]
    assert cli.main(check) == 1
    assert "cannot be read: No such file" in capsys.readouterr().err
    cli.main(["lock", "--sglang-path", str(odd), "--allow", "1"])
    capsys.readouterr()
    assert cli.main(check) == 0
    assert "is the lock of the sglang at" in capsys.readouterr().out
    before = (odd / OWN_NAME).read_bytes()
    file = odd / "sglang" / FILE
    file.write_text(file.read_text().replace("size = batch.size", "size = batch.size + 0"))
    assert cli.main(check) == 1
    err = capsys.readouterr().err
    assert "1-guard: modules, decision, reason, found, splices changed\n" in err
    assert "1-guard is now refused: " in err
    assert "2-fast: modules, found changed\n" in err
    assert "2-fast is now" not in err
    assert (odd / OWN_NAME).read_bytes() == before


def test_check_names_entries_that_the_lock_does_not_know(
    faulty: Path, tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cli.main(["lock", "--sglang-path", str(faulty)])
    newer = upstream.register(
        tmp_path / "newer", patch(), patch("3-newer", edit=[edit(find="return size > 0", before="pass")])
    )  # fmt: skip
    for module in (cli, report, shipped, write_lock):
        monkeypatch.setattr(module, "load", lambda: newer)
    capsys.readouterr()
    assert cli.main(["lock", "--check", "--sglang-path", str(faulty)]) == 1
    err = capsys.readouterr().err
    assert "3-newer is not in it; now apply" in err
    assert "2-fast is in it, and this sglang-commfix does not know it" in err


def test_the_variable_says_where_it_is_written_and_checked(
    faulty: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "my.json"
    monkeypatch.setenv("SGLANG_COMMFIX_LOCK", str(file))
    assert cli.main(["lock", "--sglang-path", str(faulty)]) == 0
    assert f"It counts where SGLANG_COMMFIX_LOCK={file} is set" in capsys.readouterr().out
    assert cli.main(["lock", "--check", "--sglang-path", str(faulty)]) == 0
    assert not (faulty / OWN_NAME).exists()


def test_a_folder_that_cannot_be_written_is_one_clear_error_and_leaves_nothing(
    faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "missing" / "lock.json"
    assert cli.main(["lock", "--sglang-path", str(faulty), "-o", str(output)]) == 2
    err = capsys.readouterr().err
    assert f"{output} cannot be written: No such file or directory" in err
    assert "set SGLANG_COMMFIX_LOCK to it" in err
    taken = tmp_path / "taken"
    (taken / "x").mkdir(parents=True)
    assert cli.main(["lock", "--sglang-path", str(faulty), "-o", str(taken)]) == 2
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("taken")] == ["taken"]


def test_status_takes_patches_as_diff_does(
    faulty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", "2", "--sglang-path", str(faulty), "--json"]) == 0
    (only,) = json.loads(capsys.readouterr().out)["patches"]
    assert (only["id"], only["decision"]) == ("2-fast", "apply")
    assert cli.main(["status", "nonsense", "--sglang-path", str(faulty)]) == 2
    assert cli.main(["status", "1", "--select", "1", "--sglang-path", str(faulty)]) == 2


def test_status_says_what_decides(faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["status", "--sglang-path", str(faulty)])
    assert (
        "Decided now: no lock knows these files. `sglang-commfix lock`" in capsys.readouterr().out
    )


class TestSeries:
    @pytest.fixture
    def series(self, faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
        folder = tmp_path / "series"
        words = ["--select", "all", "--sglang-path", str(faulty)]
        assert cli.main(["export", *words, "--series", str(folder)]) == 0
        assert f"apply with: {folder / 'apply'} {faulty}" in capsys.readouterr().out
        return folder

    def run(self, series: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(series / "apply"), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def test_it_has_one_diff_for_each_patch_in_order(self, series: Path) -> None:
        assert (series / "series").read_text().split() == [
            "0001-1-guard.patch",
            "0002-2-fast.patch",
        ]
        assert "+        if self.scattered:" in (series / "0001-1-guard.patch").read_text()
        assert "scattered" not in [
            line
            for line in (series / "0002-2-fast.patch").read_text().splitlines()
            if line.startswith("+")
        ]
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=series, check=True)
        assert os.access(series / "apply", os.X_OK)

    def test_apply_leaves_what_the_loader_would_run(self, series: Path, faulty: Path) -> None:
        planned = report.current_plan(faulty, "all").modules[MODULE].after
        result = self.run(series, faulty)
        assert result.returncode == 0, result.stderr
        assert (faulty / "sglang" / FILE).read_bytes() == planned
        assert not list(faulty.rglob("*.orig"))

    def test_apply_changes_nothing_in_another_tree(self, series: Path, odd: Path) -> None:
        before = (odd / "sglang" / FILE).read_bytes()
        result = self.run(series, odd)
        assert result.returncode != 0
        assert f"sglang/{FILE}: FAILED" in result.stdout
        assert (odd / "sglang" / FILE).read_bytes() == before

    def test_apply_changes_nothing_with_a_damaged_series(self, series: Path, faulty: Path) -> None:
        with (series / "0002-2-fast.patch").open("a") as file:
            file.write("\n")
        before = (faulty / "sglang" / FILE).read_bytes()
        assert self.run(series, faulty).returncode != 0
        assert (faulty / "sglang" / FILE).read_bytes() == before

    def test_apply_needs_a_folder(self, series: Path) -> None:
        result = self.run(series)
        assert (result.returncode, result.stderr) == (2, f"usage: {series / 'apply'} DIR\n")

    def test_one_of_file_and_series_is_asked_for(
        self, faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["export", "--sglang-path", str(faulty), "-o", "x", "--series", "y"]
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        assert caught.value.code == 2
