"""Every block of a page is run, compared with what a program prints, or named here with a reason."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from page_text import Block, blocks, inline_code
from pages import DEMO, Installation, message, run_demo, shortened
from rig.observer import ATTENTION_DP_2_EP_2, Observer, Setup
from wheels import fetch

from sglang_commfix.command import cli
from sglang_commfix.run import fleet, host


if TYPE_CHECKING:
    from collections.abc import Iterator


ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/rig/*.md")})
PAGES += sorted(ROOT.glob("benchmarks/gpu/*.md"))
UPSTREAM = "docs/upstream"

# By page and the first words of a block: the test that runs it or compares it, or why none does.
HOW = {
    ("README.md", "import sglang_commfix; sglang_commfix.init()"): (
        "test_the_readme_shows_the_whole_start_up_file"
    ),
    ("README.md", "import sglang_commfix"): "test_a_program_may_embed_sglang_as_the_readme_says",
    ("README.md", ">>> plan ="): "test_a_program_may_embed_sglang_as_the_readme_says",
    ("docs/operations.md", "$ grep -c"): "test_a_server_logs_as_many_lines_as_operations_counts",
    ("docs/operations.md", "$ sglang-commfix lock --allow"): (
        "test_an_unknown_source_is_looked_at_as_operations_says"
    ),
    ("docs/operations.md", "$ sglang-commfix status --json |"): (
        "test_the_check_of_a_fleet_fails_where_the_variable_is_not_set"
    ),
    ("docs/architecture.md", "command  →"): "a drawing; the imports are tested (test_house.py)",
    ("tests/rig/README.md", "from rig."): "test_the_rigs_page_shows_what_its_programs_print",
    ("tests/rig/README.md", "relative error"): "test_the_rigs_page_shows_what_its_programs_print",
    ("CONTRIBUTING.md", "patches/24785-sum-len-contract/"): "a list of files",
    ("CONTRIBUTING.md", "[[meets]]"): "test_contributing_shows_the_condition_of_an_entry",
    (f"{UPSTREAM}/qwen3-vl-deepstack-fusion.md", '"""Qwen3-VL-MoE'): (
        "test_the_program_prints_what_the_report_says"
    ),
    (f"{UPSTREAM}/qwen3-vl-deepstack-fusion.md", "fused: False"): (
        "test_the_program_prints_what_the_report_says"
    ),
    (f"{UPSTREAM}/qwen3-vl-deepstack-fusion.md", "# Qwen3MoeLLMModel"): "proposed to upstream",
    (f"{UPSTREAM}/eagle3-partial-sums.md", ""): "proposed to upstream",
    (f"{UPSTREAM}/triton-pool-alignment.md", '  File "'): (
        "test_upstreams_lines_are_those_of_the_release"
    ),
    (f"{UPSTREAM}/triton-pool-alignment.md", "max_bs ="): (
        "test_upstreams_lines_are_those_of_the_release"
    ),
    (f"{UPSTREAM}/triton-pool-alignment.md", "pool ="): "proposed to upstream",
    ("docs/patches.md", "the warm-up run"): "test_the_warning_of_a_patch_is_the_one_shown",
    ("docs/patches.md", ""): "drawings",
}
SHELL = {"console", "sh", "dockerfile"}
# Programs that are neither ours nor Python's: what they are asked for is not looked at.
PROGRAMS = {".", "cat", "echo", "env", "grep", "head", "mypy", "patch", "rm", "ruff", "sort", "tr"}
PROGRAMS |= {"uniq"}
VARIABLES = {host.SELECT, host.STRICT, host.LOCK, host.LOG, host.MIXED, host.ALLOW, fleet.RUNS}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]


def block_of(page: str, first: str) -> Block:
    (found,) = (one for one in blocks(ROOT / page) if one.text.startswith(first))
    return found


def key_of(block: Block) -> tuple[str, str] | None:
    """What HOW says about a block; the most words count."""
    page = name_of(block.page)
    keys = [key for key in HOW if key[0] == page and block.text.startswith(key[1])]
    return max(keys, key=lambda key: len(key[1]), default=None)


def test_each_block_is_run_or_compared_or_named_here() -> None:
    missing = [
        f"{name_of(block.page)}, line {block.line}"
        for block in all_blocks()
        if not block.section and key_of(block) is None
        if block.language not in SHELL or (block.output and block.language == "console")
    ]
    assert not missing


def test_contributing_shows_the_condition_of_an_entry() -> None:
    entry = ROOT / "patches" / "24785-sum-len-contract" / "patch.toml"

    assert block_of("CONTRIBUTING.md", "[[meets]]").text.strip() in entry.read_text()


def test_what_is_named_here_is_in_a_page_and_each_test_exists() -> None:
    assert {key_of(block) for block in all_blocks() if not block.section} - {None} == set(HOW)
    sources = "".join(file.read_text() for file in ROOT.glob("tests/**/test_*.py"))
    for how in HOW.values():
        assert f"def {how}(" in sources or not how.startswith("test_"), how


def commands_of(block: Block) -> list[str]:
    if block.language == "console":
        return block.commands
    text = block.text.replace("\\\n", " ")
    if block.language == "sh":
        return text.splitlines()
    runs = [line.removeprefix("RUN ") for line in text.splitlines() if line.startswith("RUN ")]
    sets = [line.removeprefix("ENV ") for line in text.splitlines() if line.startswith("ENV ")]
    return runs + sets


def shown_commands() -> Iterator[tuple[str, str]]:
    for block in all_blocks():
        if block.language in SHELL:
            yield from ((name_of(block.page), command) for command in commands_of(block))
    inline = re.compile(r"(SGLANG_COMMFIX\w*=\S+ )*(sglang-commfix|python|make) [^][:]+")
    for page in PAGES:
        commands = filter(inline.fullmatch, inline_code(page))
        yield from ((name_of(page), one) for one in commands if not one.startswith("python -I"))


@pytest.mark.releases
@pytest.mark.one_python
def test_each_command_that_a_page_shows_exists_with_its_options() -> None:
    wrong = {
        f"{page}: {command}: {why}"
        for page, command in shown_commands()
        for why in complaints(command)
    }
    assert not wrong


def complaints(line: str) -> Iterator[str]:
    """Say what is wrong with a line for the shell: each program of it, with its options."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    command: list[str] = []
    for word in [*lexer, ";"]:
        if not set(word) <= set(";|&()"):
            command.append(word)
            continue
        yield from _complaints(command)
        command = []


def _complaints(words: list[str]) -> Iterator[str]:
    while words and (found := re.match(r"([A-Z_]+)=", words[0])):
        if found.group(1).startswith("SGLANG_COMMFIX") and found.group(1) not in VARIABLES:
            yield f"there is no variable {found.group(1)}"
        words = words[1:]
    words = [word for word in words if word != "…"]
    if not words:
        return
    program, rest = words[0].rpartition("/")[2], words[1:]
    if program == "sglang-commfix":
        yield from _of_ours(rest)
    elif program in {"python", "python3"}:
        yield from _of_python(rest)
    elif program == "make":
        targets = re.findall(r"^([-\w]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        goals = [word for word in rest if "=" not in word]
        yield from (f"there is no target {goal}" for goal in goals if goal not in targets)
    elif program == "pip":
        if rest[:1] not in (["install"], ["uninstall"]):
            yield "pip installs and uninstalls"
    elif program == "pytest":
        yield from _files(rest)
    elif program == "apply" or program in PROGRAMS:
        return
    else:
        yield f"{program} is not known here"


def _of_ours(words: list[str]) -> Iterator[str]:
    if words[:2] == ["run", "--"]:
        yield from _complaints(words[2:]) if words[2:] != ["COMMAND"] else ()
        return
    words = words[: words.index(">")] if ">" in words else words
    said = StringIO()
    try:
        with redirect_stderr(said):
            cli._parser().parse_args(words)
    except SystemExit:
        yield said.getvalue().strip().splitlines()[-1]


def _of_python(words: list[str]) -> Iterator[str]:
    while words and words[0] in {"-I", "-E", "-S", "-u"}:
        words = words[1:]
    if words[:1] == ["-c"]:
        ast.parse(words[1])
    elif words[:1] == ["-m"] and words[1:]:
        module, *rest = words[1:]
        if module == "sglang_commfix":
            yield from _of_ours(rest) if rest else ()
        elif module == "sglang.launch_server":
            folder = fetch("0.5.11", ["sglang/launch_server.py"])
            if not (folder / "sglang/launch_server.py").is_file():
                yield "sglang has no such module"
        elif module.partition(".")[0] not in {"sglang", "sglang…", "venv"} and not find_spec(
            module
        ):
            yield f"there is no module {module}"
        if module == "pytest":
            yield from _files(rest)
    elif words and not words[0].startswith("-"):
        yield from _files(words[:1])
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        source = (ROOT / words[0]).read_text() if (ROOT / words[0]).is_file() else ""
        yield from (f"{words[0]} has no {one}" for one in options if f'"{one}"' not in source)


def _files(words: list[str]) -> Iterator[str]:
    for word in words:
        if word.endswith(".py") and word != "report.py" and not (ROOT / word).is_file():
            yield f"there is no {word}"


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("sglang-commfix status; sglang-commfix stat", True),
        ("sglang-commfix lock --alow ID", True),
        ("sglang-commfix lock --allow ID --check", False),
        ("SGLANG_COMMFIX_STRIKT=1 python -m sglang.launch_server …", True),
        ("SGLANG_COMMFIX=1 python -m sglang.launch_server …", False),
        ("sglang-commfix run -- python -m no_such_module", True),
        ("make tests", True),
        ("python tools/pages.py --chek", True),
        ("python tools/pages.py --check | head", False),
        ("python tools/page.py", True),
        ("pytest tests/no.py", True),
        ("frobnicate", True),
    ],
)
@pytest.mark.releases
@pytest.mark.one_python
def test_a_command_that_does_not_exist_is_found(command: str, wrong: bool) -> None:
    assert bool(list(complaints(command))) == wrong


@pytest.mark.releases
@pytest.mark.one_python
def test_each_option_that_a_page_names_exists() -> None:
    known = set(re.findall(r"--[a-z][-\w]+", _own_sources()))
    for release in ("0.5.1", "0.5.6", "0.5.11", "0.5.17"):
        folder = fetch(release, ["sglang/srt/server_args.py"])
        known |= set(
            re.findall(r'"(--[a-z][-\w]+)"', (folder / "sglang/srt/server_args.py").read_text())
        )
    elsewhere = {"--fuzz", "--no-deps", "--force-reinstall", "--target", "--strict", "--group"}
    for page in PAGES:
        named = " ".join([*inline_code(page), *(block.text for block in blocks(page))])
        for option in set(re.findall(r"(?<![-\w])--[a-z][-a-z0-9]*[a-z0-9]", named)) - elsewhere:
            # argparse takes a beginning for the whole: --tp for --tp-size.
            assert any(one.startswith(option) for one in known), f"{name_of(page)}: {option}"


def _own_sources() -> str:
    files = [
        *ROOT.glob("tools/*.py"),
        *ROOT.glob("benchmarks/**/*.py"),
        *ROOT.glob("tests/rig/**/*.py"),
    ]
    return "".join(file.read_text() for file in (*files, *ROOT.glob("sglang_commfix/command/*.py")))


@pytest.fixture
def faulty_release(tmp_path: Path) -> Installation:
    return Installation("0.5.11", tmp_path / "installation")


@pytest.mark.releases
@pytest.mark.one_python
def test_a_program_may_embed_sglang_as_the_readme_says(faulty_release: Installation) -> None:
    program = block_of("README.md", "import sglang_commfix\n\nsglang_commfix.activate()").text
    assert program.endswith("import sglang")
    assert "INFO" not in faulty_release.run(f"python -c {shlex.quote(program)}")
    session = block_of("README.md", ">>> plan =").text
    (faulty_release.work / "session.txt").write_text(f">>> import sglang_commfix\n{session}\n")
    assert faulty_release.run("python -m doctest session.txt") == ""


@pytest.mark.releases
@pytest.mark.one_python
def test_an_unknown_source_is_looked_at_as_operations_says(faulty_release: Installation) -> None:
    file = faulty_release.site / "sglang/srt/layers/communicator.py"
    place = "    def should_use_reduce_scatter(self, forward_batch: ForwardBatch):\n"
    text = file.read_text()
    file.write_text(
        text.replace(place, f"{place}        if forward_batch is None:\n            return True\n")
    )
    assert text != file.read_text()
    status = faulty_release.run("sglang-commfix status 24785", status=1)
    assert "neither the fault nor its fix is known here" in status
    allow, diff = block_of("docs/operations.md", "$ sglang-commfix lock --allow").commands
    assert "allowed although neither" in faulty_release.run(allow, status=None)
    assert faulty_release.run(diff).startswith("--- a/sglang/srt/layers/communicator.py\n")


@pytest.mark.releases
@pytest.mark.one_python
def test_the_check_of_a_fleet_fails_where_the_variable_is_not_set(
    faulty_release: Installation,
) -> None:
    (command,) = block_of("docs/operations.md", "$ sglang-commfix status --json |").commands
    faulty_release.run(command, status=1)
    faulty_release.run(command, SGLANG_COMMFIX="1")


@pytest.mark.releases
@pytest.mark.one_python
def test_an_image_is_patched_as_operations_says(faulty_release: Installation) -> None:
    block = block_of("docs/operations.md", "RUN pip install sglang-commfix \\")
    (command,) = commands_of(block)
    steps = [step.strip() for step in command.split("&&")]
    assert [step.split()[0] for step in steps] == [
        "pip",
        "sglang-commfix",
        "patch",
        "sglang-commfix",
        "pip",
        "rm",
    ]
    where = re.search(r'"\$\(.*?\)"(?= <)', command)
    assert where
    assert Path(faulty_release.run(f"echo {where.group()}").strip()).name == "site-packages"
    for step in (*steps[1:4], steps[5]):
        said = faulty_release.run(step.replace(where.group(), str(faulty_release.site)))
    assert not list(faulty_release.work.iterdir())
    assert said == ""


@pytest.mark.releases
@pytest.mark.one_python
def test_upstreams_lines_are_those_of_the_release() -> None:
    folder = fetch("0.5.11", [name := "sglang/srt/layers/attention/triton_backend.py"])
    lines = (folder / name).read_text().splitlines()
    page = f"{UPSTREAM}/triton-pool-alignment.md"
    where, code, _ = block_of(page, '  File "').text.splitlines()
    found = re.search(r"line (\d+), in (\w+)", where)
    assert found
    assert lines[int(found.group(1)) - 1].strip() == code.strip()
    for line in block_of(page, "max_bs =").text.splitlines():
        assert line in {one.strip() for one in lines}


def test_the_warning_of_a_patch_is_the_one_shown() -> None:
    shown = block_of("docs/patches.md", "the warm-up run").text
    texts = [
        node.value
        for file in ROOT.glob("patches/*/*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    patterns = [re.escape(text).replace("%d", r"\d+") for text in texts]
    assert any(re.fullmatch(pattern, shown) for pattern in patterns)


@pytest.mark.servers
def test_a_server_logs_as_many_lines_as_operations_counts(
    observe: Observer, tmp_path: Path
) -> None:
    log = observe(Setup("0.5.11", ATTENTION_DP_2_EP_2, patches="1")).log
    (tmp_path / "server.log").write_text(log)
    block = block_of("docs/operations.md", "$ grep -c")
    (command,) = block.commands
    ran = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=True)
    assert ran.stdout.decode().strip() == block.output


@pytest.mark.servers_full
def test_the_rigs_page_shows_what_its_programs_print() -> None:
    page = "tests/rig/README.md"
    server, layers, decisions = (
        next(one.text for one in blocks(ROOT / page) if f"{name}(" in one.text)
        for name in ("Server", "LayerProcess", "decide")
    )
    assert program(server).startswith("[Completion(")
    shown = block_of(page, "relative error").text
    assert alike(*(text.replace(",", " ") for text in (program(layers), shown)))
    imports = layers.splitlines()[0]
    setup = f"{imports}\nenvironment = ensure(['0.5.12.post1'])"
    assert int(program(f"{setup}\n{decisions}\nprint(len(answers))")) > 1


def program(text: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.strip()


@pytest.mark.servers_full
def test_the_demo_prints_what_the_readme_shows(faulty_release: Installation) -> None:
    table, logged = run_demo()
    assert alike(table, DEMO.read_text())
    assert logged == message(faulty_release).strip()
    assert shortened(logged) in (ROOT / "README.md").read_text()


def alike(one: str, other: str) -> bool:
    """Whether two runs of the demo show the same.

    Numbers below 0.001 are noise, and a server that adds up too much does so once more in one step
    and once less in another: its tokens are wrong, and not the same ones each time.
    """
    wrong = re.compile(r"^(--tp 2.*?)( +\d+){8}$", re.MULTILINE)
    rows = [wrong.sub(r"\1", text).splitlines() for text in (one, other)]
    if len(rows[0]) != len(rows[1]):
        return False
    words = [(a.split(), b.split()) for a, b in zip(*rows, strict=True)]
    return all(len(a) == len(b) and all(map(_near, a, b)) for a, b in words)


def _near(one: str, other: str) -> bool:
    if one == other or one.isdecimal() or other.isdecimal():
        return one == other
    try:
        return abs(float(one) - float(other)) < max(1e-3, float(other) / 10)
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("the same, SGLANG_COMMFIX=1  4 of 4  9e-07  2e-06  right", True),
        ("the same, SGLANG_COMMFIX=1  4 of 4  9e-02  2e-06  right", False),
        ("the same, SGLANG_COMMFIX=1  3 of 4  5e-07  2e-06  right", False),
        ("the same, SGLANG_COMMFIX=1  4 of 4  5e-07  2e-06  WRONG", False),
        ("the same, SGLANG_COMMFIX=1  4 of 4  5e-07", False),
    ],
)
def test_runs_of_the_demo_that_differ_in_more_than_noise_are_told_apart(
    line: str, same: bool
) -> None:
    assert alike(line, "the same, SGLANG_COMMFIX=1  4 of 4  5e-07  2e-06  right") == same
    wrong = "--tp 2 --dp 2 --ep 2       296 260 105 261 336  32 280 334"
    assert alike(wrong, wrong.replace("334", "151"))
    assert not alike(wrong, wrong.replace("--dp 2", "--dp 4"))
