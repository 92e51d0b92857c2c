"""The command, in this process; ``tests/hook`` runs it in its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rig.stand_in import FAULTY, FILE, FIXED, MODULE, Upstream, edit, in_doubt, patch, write_sglang

import sglang_commfix
from sglang_commfix.command import cli, report, write_lock
from sglang_commfix.engine import register, shipped


MEETS = [
    {"releases": ">=1.2", "architectures": ["GptOssForCausalLM"], "machines": ["Hopper"]},
    {"flags": ["tp_size == dp_size > 1", "flashinfer_fusion"], "also": "memory is short"},
]
AVOID = [
    {"flags": {"ep_size": 1, "enable_dp_attention": True}, "releases": ">=1.2", "cost": "room"},
    {"what": "a smaller model"},
]
DIFFERENCES = [{"decision": "fusion", "when": "tp > 1", "why": "Rounds down."}]


@pytest.fixture(autouse=True)
def own_register(tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = patch("2-fast", kind="performance", edit=[edit(find="return size > 0", before="pass")])
    loaded = upstream.register(
        tmp_path / "patches",
        patch(
            links=["https://example.org/1"],
            fixes=[7, 8],
            difference=DIFFERENCES,
            meets=MEETS,
            avoid=AVOID,
            shown=["cpu server", "H100"],
        ),
        fast,
    )
    for module in (cli, report, shipped, write_lock):
        monkeypatch.setattr(module, "load", lambda: loaded)
    for name in ("", "_STRICT", "_ALLOW_UNKNOWN", "_LOG"):
        monkeypatch.delenv(f"SGLANG_COMMFIX{name}", raising=False)
    monkeypatch.chdir(tmp_path)


class Ran:
    def __init__(self, capsys: pytest.CaptureFixture[str], *words: str | Path) -> None:
        try:
            self.status = cli.main([str(word) for word in words])
        except SystemExit as error:
            self.status = int(str(error.code))
        self.out, self.err = capsys.readouterr()


class TestStatus:
    def test_the_text_says_what_where_and_why(
        self, faulty: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ran = Ran(capsys, "status", "--sglang-path", faulty)
        assert ran.status == 0
        assert f"sglang 1.1 at {faulty / 'sglang'}" in ran.out
        assert "SGLANG_COMMFIX is not set: nothing is applied. Shown is what" in ran.out
        assert "apply       1-guard  (PR #1, correctness, fixed in 1.3)" in ran.out
        assert f"sglang/{FILE}:8  LayerCommunicator.should_fuse " in ran.out
        assert ", as in 1.1 to 1.2" in ran.out
        assert "disabled    2-fast" in ran.out
        assert ran.out.rstrip().endswith("1 to apply, 0 not needed, 0 refused, 1 switched off")

    def test_the_json_is_of_schema_1(
        self, faulty: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report = json.loads(Ran(capsys, "status", "--json", "--sglang-path", faulty).out)
        assert report["schema"] == 1
        assert report["sglang"] == {"version": "1.1", "path": str(faulty / "sglang")}
        assert (report["select"], report["select_from"]) == ("1", "default")
        first, second = report["patches"]
        assert {k: first[k] for k in ("id", "pr", "kind", "decision", "fixed_in")} == {
            "id": "1-guard",
            "pr": 1,
            "kind": "correctness",
            "decision": "apply",
            "fixed_in": "1.3",
        }
        (only,) = first["edits"]
        assert only.keys() == {
            "module",
            "scope",
            "operation",
            "file",
            "line",
            "fingerprint",
            "as_in",
        }
        assert (only["module"], only["file"], only["line"]) == (MODULE, f"sglang/{FILE}", 8)
        assert second["decision"] == "disabled"

    def test_select_stands_in_for_the_environment(
        self, faulty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SGLANG_COMMFIX", "0")
        words = ("status", "--json", "--sglang-path", faulty)
        decisions = [p["decision"] for p in json.loads(Ran(capsys, *words).out)["patches"]]
        assert decisions == ["disabled", "disabled"]
        report = json.loads(Ran(capsys, *words, "--select", "all").out)
        assert [p["decision"] for p in report["patches"]] == ["apply", "apply"]
        assert report["select_from"] == "--select"

    def test_when_nothing_is_needed_it_says_to_uninstall(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ran = Ran(capsys, "status", "--sglang-path", write_sglang(tmp_path / "new", {FILE: FIXED}))
        assert ran.status == 0
        assert (
            f"None of the 2 faults that sglang-commfix {sglang_commfix.__version__} knows"
            in ran.out
        )

    def test_a_refusal_is_exit_status_1(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = write_sglang(tmp_path / "odd", {FILE: in_doubt(FAULTY)})
        ran = Ran(capsys, "status", "--sglang-path", root)
        assert ran.status == 1
        assert "refused     1-guard" in ran.out
        assert "`sglang-commfix lock --allow 1-guard`" in ran.out
        assert Ran(capsys, "status", "--sglang-path", root, "--select", "0").status == 0

    def test_a_folder_that_shadows_sglang_is_pointed_out(
        self,
        tmp_path: Path,
        faulty: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.syspath_prepend(str(faulty))
        assert "would import" not in Ran(capsys, "status").out
        (tmp_path / "sglang").mkdir()
        assert "would import" not in Ran(capsys, "status").out  # no package: it hides nothing
        (tmp_path / "sglang" / "__init__.py").touch()
        assert f"would import {tmp_path / 'sglang'}, not the sglang" in Ran(capsys, "status").out

    @pytest.mark.parametrize("where", ["checkout", "package"])
    def test_the_path_may_be_a_checkout_or_the_package_itself(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
    ) -> None:
        write_sglang(tmp_path / "repository" / "python", {FILE: FAULTY})
        path = tmp_path / "repository"
        if where == "package":
            path = path / "python" / "sglang"
        assert "apply       1-guard" in Ran(capsys, "status", "--sglang-path", path).out


class TestBadInput:
    @pytest.mark.parametrize(
        ("words", "status", "message"),
        [
            ([], 2, "the following arguments are required: COMMAND"),
            (["frobnicate"], 2, "invalid choice: 'frobnicate'"),
            (["status", "--select", "nonsense"], 2, "'nonsense' is unknown. Known are: 0, off, 1"),
            (["diff", "nonsense"], 2, "'nonsense' is unknown"),
            (["diff", "1-guard", "--select", "1"], 2, "give one of them"),
            (["explain", "nonsense"], 2, "'nonsense' is unknown. Known are: 1-guard, 2-fast, 1, 2"),
            (["export"], 2, "one of the arguments -o/--output --series is required"),
            (["run"], 2, "run needs a command"),
            (["status", "--sglang-path", "nowhere"], 3, "nowhere contains no sglang package"),
        ],
    )
    def test_it_is_one_clear_error_and_a_documented_status(
        self,
        faulty: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        words: list[str],
        status: int,
        message: str,
    ) -> None:
        monkeypatch.syspath_prepend(str(faulty))
        ran = Ran(capsys, *words)
        assert ran.status == status
        assert message in ran.err
        assert ran.out == ""

    @pytest.mark.parametrize("name", ["", "_STRICT", "_ALLOW_UNKNOWN", "_LOG"])
    def test_an_environment_that_cannot_be_used_is_a_usage_error(
        self,
        faulty: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        name: str,
    ) -> None:
        monkeypatch.setenv(f"SGLANG_COMMFIX{name}", "nonsense")
        ran = Ran(capsys, "status", "--sglang-path", faulty)
        assert ran.status == 2
        assert f"SGLANG_COMMFIX{name}='nonsense'" in ran.err

    def test_no_sglang_is_exit_status_3(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sglang_commfix.command.which.find_sglang", lambda: None)
        ran = Ran(capsys, "status")
        assert (ran.status, ran.out) == (3, "")
        assert ran.err.startswith("sglang-commfix: no sglang is installed for ")

    def test_something_else_named_sglang_is_exit_status_3(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "sglang.py").write_text("")
        monkeypatch.syspath_prepend(str(tmp_path))
        ran = Ran(capsys, "status")
        assert ran.status == 3
        assert f"{tmp_path / 'sglang.py'}, which is not sglang's runtime" in ran.err

    def test_a_damaged_register_is_one_line(
        self,
        faulty: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(shipped, "load", lambda: register.load_folder(tmp_path / "nowhere"))
        ran = Ran(capsys, "status", "--sglang-path", faulty)
        assert ran.status == 1
        assert "reinstall sglang-commfix" in ran.err


class TestDiff:
    def test_it_prints_what_importing_amounts_to(
        self, faulty: Path, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        assert cli.main(["diff", "--sglang-path", str(faulty)]) == 0
        out = capfdbinary.readouterr().out
        assert out.startswith(f"--- a/sglang/{FILE}\n+++ b/sglang/{FILE}\n@@".encode())
        assert b"+        if self.scattered:\n" in out
        assert b"+        pass" not in out

    def test_patches_may_be_named(
        self, faulty: Path, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        assert cli.main(["diff", "2", "--sglang-path", str(faulty)]) == 0
        out = capfdbinary.readouterr().out
        assert b"+        pass" in out
        assert b"scattered" not in out

    def test_what_is_not_needed_is_said_apart(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = write_sglang(tmp_path / "new", {FILE: FIXED}, "1.3")
        assert cli.main(["diff", "1-guard", "--sglang-path", str(root)]) == 0
        out, err = capsys.readouterr()
        assert (out, err) == ("", "1-guard: not-needed: sglang has the fix since 1.3\n")

    @pytest.mark.parametrize("newline", ["\n", "\r\n"])
    def test_lines_without_an_end_and_windows_line_ends_are_kept(
        self, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], newline: str
    ) -> None:
        text = FAULTY.rstrip().replace("\n\n    def other(self):\n        return 1", "")
        root = write_sglang(tmp_path / "site", {FILE: text.replace("\n", newline)})
        assert cli.main(["diff", "1-guard", "--sglang-path", str(root)]) == 0
        out = capfdbinary.readouterr().out
        assert f"+        if self.scattered:{newline}".encode() in out
        assert b"\n\\ No newline at end of file\n" in out


class TestExport:
    def test_a_file_that_cannot_be_written_is_a_usage_error(
        self, faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "missing" / "fixes.patch"
        ran = Ran(capsys, "export", "--sglang-path", faulty, "-o", output)
        assert ran.status == 2
        assert f"{output} cannot be written: No such file or directory" in ran.err

    def test_a_refused_patch_does_not_keep_the_others_from_being_written(
        self, tmp_path: Path, upstream: Upstream, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        there = {"module": "sglang.srt.other", "scope": "f", "find": "a = 1", "after": "b()"}
        for release in ("1.1", "1.2"):
            upstream.releases[release]["sglang.srt.other"] = "def f():\n    a = 1\n"
        loaded = upstream.register(tmp_path / "more", patch(), patch("3-other", edit=[there]))
        for module in (cli, report, shipped):
            monkeypatch.setattr(module, "load", lambda: loaded)
        files = {FILE: FAULTY, "srt/other.py": "def f():\n    a = 2\n"}
        root = write_sglang(tmp_path / "half", files)
        output = tmp_path / "fixes.patch"
        ran = Ran(capsys, "export", "--sglang-path", root, "-o", output)
        assert ran.status == 1
        assert "3-other: refused: neither the fault nor its fix is known here" in ran.err
        assert ran.out.startswith(f"{output}: 1-guard for sglang 1.1\n")
        assert "self.scattered" in output.read_text()

    def test_nothing_is_written_if_a_patch_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = write_sglang(tmp_path / "odd", {FILE: in_doubt(FAULTY)})
        output = tmp_path / "fixes.patch"
        ran = Ran(capsys, "export", "--sglang-path", root, "-o", output)
        assert ran.status == 1
        assert "1-guard: refused: " in ran.err
        assert not output.exists()

    def test_it_says_how_to_apply_the_file(
        self, faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "fixes.patch"
        ran = Ran(capsys, "export", "--sglang-path", faulty, "-o", output)
        assert ran.status == 0
        assert f"{output}: 1-guard for sglang 1.1\napply with: patch -p1 -d {faulty} <" in ran.out

    def test_nothing_is_written_where_nothing_is_needed(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = write_sglang(tmp_path / "new", {FILE: FIXED})
        output = tmp_path / "fixes.patch"
        ran = Ran(capsys, "export", "1-guard", "--sglang-path", root, "-o", output)
        assert ran.status == 0
        assert "nothing is needed here" in ran.err
        assert not output.exists()


class TestExplain:
    def test_it_tells_everything_about_a_patch(self, capsys: pytest.CaptureFixture[str]) -> None:
        ran = Ran(capsys, "explain", "#1")
        assert ran.status == 0
        for text in ("Symptom", "Cause", "Who is hit", "What is changed", "When to drop it"):
            assert text in ran.out
        assert "https://example.org/1" in ran.out
        assert "Repairs upstream's own version of: #7, #8" in ran.out
        assert "decides differently from upstream\n    Rounds down." in ran.out

    def test_as_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        data = json.loads(Ran(capsys, "explain", "--json", "1-guard").out)
        assert data["schema"] == 1
        assert data["patches"][0]["symptom"] == "text"
        assert data["patches"][0]["fixes"] == [7, 8]
        assert data["patches"][0]["differences"] == ["Rounds down."]


def test_the_report_of_the_python_interface_is_that_of_the_command(
    faulty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = sglang_commfix.status(faulty)
    ran = Ran(capsys, "status", "--json", "--sglang-path", faulty)
    assert report.as_dict() == json.loads(ran.out) | {"warnings": report.warnings} | {
        "patches": report.as_dict()["patches"]
    }
    assert isinstance(report, sglang_commfix.Report)
    assert isinstance(report.patches[0], sglang_commfix.command.report.PatchReport)
    assert report.patches[0].decision == "apply"


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert Ran(capsys, "--version").out == f"{sglang_commfix.__version__}\n"


class TestLaunches:
    def test_explain_says_which_launches_meet_a_fault_and_what_avoids_it(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = Ran(capsys, "explain", "1-guard").out

        assert (
            """
Which launches meet it
    Those of which all of this holds,
      - sglang >=1.2
      - `GptOssForCausalLM`
      - on Hopper
    or all of this,
      - `--tp-size` = `--dp-size` > 1
      - FlashInfer's all-reduce fusion on
      - what no launch can tell: memory is short

Without this package
    `--ep-size 1`, `--enable-dp-attention` (1.2). The price: room
    a smaller model (1.1 to 1.2)

Shown on
    real servers on CPUs, NVIDIA H100
"""
            in text
        )

    def test_what_mends_nothing_is_of_use_to_launches_and_has_nothing_to_avoid(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = Ran(capsys, "explain", "2-fast").out

        assert "\nWhich launches gain by it\n    Those of which all of this holds:\n" in text
        assert "Without this package" not in text

    def test_as_json_a_program_finds_them_as_they_are_written_and_in_words(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (entry,) = json.loads(Ran(capsys, "explain", "--json", "1-guard").out)["patches"]

        assert [{k: v for k, v in one.items() if k != "words"} for one in entry["meets"]] == MEETS
        assert entry["meets"][0]["words"] == ["sglang >=1.2", "`GptOssForCausalLM`", "on Hopper"]
        assert entry["avoid"] == [
            {
                "what": "`--ep-size 1`, `--enable-dp-attention`",
                "flags": {"ep_size": 1, "enable_dp_attention": True},
                "releases": "1.2",
                "cost": "room",
            },
            {"what": "a smaller model", "flags": {}, "releases": "1.1 to 1.2", "cost": ""},
        ]
        assert entry["shown"] == ["cpu server", "H100"]


class TestMachine:
    @pytest.mark.parametrize(
        ("files", "machine"),
        [
            ([], None),
            (["dev/kfd"], "AMD"),
            (["dev/davinci0", "dev/davinci_manager"], "Ascend"),
            (["dev/nvidiactl"], "NVIDIA"),
            (["proc/driver/nvidia/version"], "NVIDIA"),
            (["dev/kfd", "dev/nvidiactl"], None),
            (["dev/dri/card0"], None),
        ],
    )
    def test_it_is_told_by_the_drivers_files_or_not_at_all(
        self, tmp_path: Path, files: list[str], machine: str | None
    ) -> None:
        for name in files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()

        assert report.accelerator(tmp_path) == machine

    @pytest.fixture
    def says(
        self, faulty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[str | None], list[str]]:
        """What `status` notes of the installed sglang, on a machine."""

        def says(machine: str | None) -> list[str]:
            monkeypatch.setattr(report, "accelerator", lambda: machine)
            lines = Ran(capsys, "status").out.splitlines()
            return [line for line in lines if line.startswith("NOTE: ")]

        monkeypatch.syspath_prepend(str(faulty))
        return says

    @pytest.mark.parametrize("machine", ["AMD", "Ascend"])
    def test_status_says_in_one_line_that_patches_were_shown_on_other_machines_alone(
        self, says: Callable[[str | None], list[str]], machine: str
    ) -> None:
        (line,) = says(machine)

        assert line == (
            f"NOTE: this machine has {machine}; what is applied was shown on CPUs and NVIDIA H100 "
            "alone: 1-guard"
        )

    @pytest.mark.parametrize("machine", ["NVIDIA", None])
    def test_it_says_nothing_where_that_code_was_shown_or_nothing_can_be_told(
        self, says: Callable[[str | None], list[str]], machine: str | None
    ) -> None:
        assert says(machine) == []

    def test_it_says_nothing_where_nothing_is_applied(
        self, says: Callable[[str | None], list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SGLANG_COMMFIX", "0")

        assert says("AMD") == []

    def test_a_sglang_that_is_looked_at_elsewhere_may_run_on_any_machine(
        self, faulty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(report, "accelerator", lambda: "AMD")

        found = json.loads(Ran(capsys, "status", "--json", "--sglang-path", faulty).out)
        assert found["machine"] is None
        assert [patch["shown"] for patch in found["patches"]] == [
            ["cpu server", "H100"],
            ["cpu ranks"],
        ]
