"""What the pages list is what there is: variables, fields, files, figures; what sglang has itself."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import inspect
import json
import re
import statistics
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from page_text import cells, inline_code
from wheels import fetch

from sglang_commfix.command import cli, report
from sglang_commfix.lock import Decision, Lock
from sglang_commfix.run import fleet, host


if TYPE_CHECKING:
    from collections.abc import Iterator


ROOT = Path(__file__).resolve().parents[2]
README, OPERATIONS = ROOT / "README.md", ROOT / "docs" / "operations.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
RESULTS = ROOT / "benchmarks" / "results"


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_readme_lists_every_variable_that_a_user_sets() -> None:
    listed = {named(row[0])[0] for row in cells(README, "variable")}
    assert listed == {host.SELECT, host.STRICT, host.MIXED, host.LOCK, host.LOG}
    security = set(inline_code(ROOT / "SECURITY.md"))
    assert listed | {host.ALLOW, fleet.RUNS} <= security


def test_the_readme_lists_every_command_with_its_options() -> None:
    listed: dict[str, set[str]] = {}
    for row in cells(README, "command"):
        command, options = named(row[0])[0].split()[1], re.findall(r"-o\b|--\w+", row[0])
        listed.setdefault(command, set()).update(options)
    shared = {"--sglang-path", "--select"}
    text = README.read_text()
    assert all(f"`{option} " in text for option in shared)
    for name, options in options_of_the_command():
        listed[name].discard("--")
        assert listed[name] | shared | {"-o"} >= options, name
        assert listed[name] <= options, name
    assert {name for name, _ in options_of_the_command()} == set(listed)


def options_of_the_command() -> Iterator[tuple[str, set[str]]]:
    (commands,) = (one for one in cli._parser()._actions if isinstance(one.choices, dict))
    for name, parser in (commands.choices or {}).items():
        flags = [action.option_strings for action in parser._actions if action.dest != "help"]
        yield name, {flag for one in flags for flag in one[:1]}


def test_exit_statuses_are_those_of_the_command() -> None:
    listed = {row[0] for row in cells(README, "exit status")}
    assert listed == {str(one) for one in (cli.OK, cli.REFUSED, cli.USAGE, cli.NO_SGLANG, 78)}


def test_every_decision_is_explained() -> None:
    decided = {named(row[0])[0] for row in cells(README, "decision")}
    source = inspect.getsource(cli._advice)
    assert decided == set(re.findall(r'\("([-a-z]+)", "', source))


def test_the_fields_of_json_are_listed() -> None:
    rows = {row[0]: row[1] for row in cells(OPERATIONS, "field")}
    listed = {name for head in rows for name in named(head)}
    top = {field.name for field in dataclasses.fields(report.Report)} | {"schema"}
    assert {name for name in listed if "[]" not in name} == top - {"patches"}
    for head, kind in (
        ("`sglang`", report.SglangReport),
        ("`like`", report.Likeness),
        ("`patches[]`", report.PatchReport),
        ("`patches[].edits[]`", report.EditReport),
    ):
        fields = {field.name for field in dataclasses.fields(kind)}
        assert fields <= {name.removesuffix("[]") for name in named(rows[head])}, head


def test_the_fields_of_a_lock_are_listed() -> None:
    listed = {named(row[0])[0] for row in cells(ARCHITECTURE, "field")}
    own = {"id", "pr", "kind", "title", "fixed_in", "fixes", "requires", "conflicts", "collective"}
    assert listed | own == {*Lock.__annotations__, *Decision.__annotations__}


def test_each_file_of_the_package_is_listed_once() -> None:
    rows = [name for row in cells(ARCHITECTURE, "file") for name in named(row[0])]
    package = ROOT / "sglang_commfix"
    files = {file.relative_to(package).as_posix() for file in package.rglob("*.py")}
    listed = [name for name in rows if name in files]
    left_out = {"__main__.py", *(file for file in files if file.endswith("/__init__.py"))}
    assert sorted(listed) == sorted(files - left_out)
    tools = {f"tools/{file.name}" for file in ROOT.glob("tools/*.py")}
    assert {name for name in rows if name.startswith("tools/")} == tools


def test_security_lists_each_file_that_a_server_may_execute() -> None:
    listed = [named(row[0])[0] for row in cells(ROOT / "SECURITY.md", "file in")]
    package = ROOT / "sglang_commfix"
    files = {*package.glob("*.py"), *package.glob("run/**/*.py")} - {package / "__main__.py"}
    assert sorted(listed) == sorted(file.relative_to(package).as_posix() for file in files)


def test_each_module_of_the_rig_that_its_page_lists_exists_and_none_is_missing() -> None:
    rig = ROOT / "tests" / "rig"
    tables = [name for row in cells(rig / "README.md", "module") for name in named(row[0])]
    files = {file.name for file in rig.rglob("*.py")} - {"__init__.py"}
    for name in tables:
        assert (rig / name).exists() or name in files, name
    top = {file.name for file in rig.glob("*.py")} - {"__init__.py", "demo.py"}
    top |= {f"{file.parent.name}/" for file in rig.glob("*/__init__.py")}
    assert top <= set(tables) | {"sgl_kernel/"}


def test_the_readmes_figures_are_those_that_were_measured() -> None:
    text = " ".join(README.read_text().split())
    seconds = json.loads((RESULTS / "plan.json").read_text())["seconds"]
    case = "SGLANG_COMMFIX=1, beside what sglang imports anyway: {}, "  # the real register first
    lock, engine = (
        next(own for name, own in seconds.items() if name.startswith(case.format(who)))
        for who in ("lock", "engine")
    )
    anew = statistics.median(b / a for a, b in zip(lock, engine, strict=True))
    assert f"Its plan takes {statistics.median(lock) * 1e3:.0f} ms" in text
    assert f"deciding anew takes {anew:.0f} times as long" in text
    startup = " ".join((RESULTS / "startup.md").read_text().split())
    ratio = re.search(r"variable unset takes ([\d.]+) times as long", startup)
    assert ratio
    assert f"Such a start takes {float(ratio.group(1)):.2f} times as long" in text


@pytest.mark.parametrize(
    ("head", "results"),
    [
        ("Two GPUs", "h100-two-gpus"),
        ("Ranks that run other patches", "h200-two-gpus"),
        ("Several ranks on one GPU", "h100-several-ranks"),
        ("What compilers make of a patched module", "h100-tp1"),
    ],
)
def test_the_figures_of_the_tables_from_gpus_are_among_those_that_were_measured(
    head: str, results: str
) -> None:
    measured = list(numbers(json.loads((RESULTS / f"{results}.json").read_text())))
    text = (ROOT / "docs" / "gpus.md").read_text()
    section = text.partition(f"## {head}\n")[2].partition("\n## ")[0]
    rows = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    shown = re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])|(?<=greedy )\d+|(?<=greedy \*\*)\d+", rows)
    assert len(shown) > 3
    for figure in shown:
        half = 0.501 * 10 ** -len(figure.partition(".")[2])
        assert any(abs(one - float(figure)) <= half for one in measured), figure


def numbers(value: object) -> Iterator[float]:
    if isinstance(value, dict):
        yield from (one for inner in value.values() for one in numbers(inner))
    elif isinstance(value, list):
        yield from (one for inner in value for one in numbers(inner))
    elif isinstance(value, str):
        yield from map(float, re.findall(r"\d+(?:\.\d+)?", value))
    elif isinstance(value, int | float):
        yield float(value)


# What sglang has of its own.


def of_sglang(release: str, *files: str) -> list[str]:
    folder = fetch(release, files)
    return [(folder / file).read_text() for file in files]


def imported_first(text: str) -> set[str]:
    """The modules that a module imports whenever it is imported itself."""
    nodes = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    return {f"{node.module}.{alias.name}" for node in nodes for alias in node.names} | {
        str(node.module) for node in nodes
    }


@pytest.mark.releases
@pytest.mark.one_python
@pytest.mark.parametrize(
    ("release", "between"),
    [
        ("0.5.11", "sglang.srt.managers.scheduler_dp_attn_mixin"),
        ("0.5.17", "sglang.srt.managers.scheduler_components.dp_attn"),
        ("0.5.20", "sglang.srt.managers.scheduler_components.dp_attn"),
    ],
)
def test_a_scheduler_has_imported_the_communicator_before_its_plug_ins_are_loaded(
    release: str, between: str
) -> None:
    way = ["sglang.srt.managers.scheduler", between, "sglang.srt.batch_overlap.two_batch_overlap"]
    way += ["sglang.srt.layers.communicator"]
    texts = of_sglang(release, *(f"{name.replace('.', '/')}.py" for name in way))
    for text, name in zip(texts, way[1:], strict=False):
        assert name in imported_first(text)
    calls = [
        function.name
        for function in ast.parse(texts[0]).body
        if isinstance(function, ast.FunctionDef) and "load_plugins()" in ast.unparse(function)
    ]
    assert calls == ["run_scheduler_process"]


@pytest.mark.releases
@pytest.mark.one_python
@pytest.mark.parametrize(("release", "called"), [("0.5.11", 0), ("0.5.21", 0), ("0.5.22", 2)])
def test_plug_ins_are_loaded_in_other_processes_from_0_5_22_on(release: str, called: int) -> None:
    files = ("data_parallel_controller", "detokenizer_manager")
    texts = of_sglang(release, *(f"sglang/srt/managers/{name}.py" for name in files))
    assert sum("    load_plugins()\n" in text for text in texts) == called


@pytest.mark.releases
@pytest.mark.one_python
@pytest.mark.parametrize("release", ["0.5.11", "0.5.23"])
def test_a_plug_in_of_sglang_that_cannot_be_hooked_in_is_logged_and_no_more(
    release: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = "sglang/srt/plugins/hook_registry.py"
    registry = loaded("hook_registry", fetch(release, [name]) / name)
    registry.HookRegistry.register("json.no_such_function", lambda: None, registry.HookType.REPLACE)
    registry.HookRegistry.apply_hooks()
    assert "Failed to apply hooks to json.no_such_function" in caplog.text


@pytest.mark.releases
@pytest.mark.one_python
@pytest.mark.parametrize("release", ["0.5.11", "0.5.23"])
def test_a_plug_in_reaches_attributes_of_modules_and_no_other_copy(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "sglang/srt/plugins/hook_registry.py"
    registry = loaded("hook_registry", fetch(release, [name]) / name)

    def copied(value: int) -> int:
        return value + 1

    owner, importer = ModuleType("owner"), ModuleType("importer")
    owner.copied = importer.copied = copied
    monkeypatch.setitem(sys.modules, "owner", owner)
    monkeypatch.setitem(sys.modules, "importer", importer)
    table = {"copied": copied}
    registry.HookRegistry.register("owner.copied", lambda _: 7, registry.HookType.REPLACE)
    registry.HookRegistry.apply_hooks()
    assert owner.copied(1) == importer.copied(1) == 7
    assert table["copied"](1) == 2


def loaded(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.releases
@pytest.mark.one_python
@pytest.mark.parametrize("release", ["0.5.10", "0.5.11", "0.5.23"])
class TestSourcePatcher:
    """sglang's own, with stand-ins for yaml and pydantic, which it does not need for this."""

    @pytest.fixture
    def patch(self, release: str, monkeypatch: pytest.MonkeyPatch):
        package = "sglang.srt.debug_utils.source_patcher"
        folder = fetch(release, [f"{package.replace('.', '/')}/"])
        pydantic = ModuleType("pydantic")
        pydantic.BaseModel = type("BaseModel", (), {})
        pydantic.ConfigDict, pydantic.model_validator = dict, lambda **_: lambda method: method
        stand_ins = {"yaml": ModuleType("yaml"), "pydantic": pydantic}
        for depth in range(1, 4):
            name = ".".join(package.split(".")[:depth])
            stand_ins[name] = ModuleType(name)
            stand_ins[name].__path__ = [str(folder / name.replace(".", "/"))]
        for name, module in stand_ins.items():
            monkeypatch.setitem(sys.modules, name, module)
        for name in [one for one in sys.modules if one.startswith(package)]:
            monkeypatch.delitem(sys.modules, name)
        patcher = importlib.import_module(package)
        states = []

        def patch(target, old: str, new: str) -> None:
            one = patcher.EditSpec()
            one.match, one.replacement = old, new
            states.append(patcher.patch_function(target=target, edits=[one]))

        yield patch
        for state in states:
            state.restore()
        for name in [one for one in sys.modules if one.startswith(package)]:
            del sys.modules[name]

    def test_it_changes_a_plain_function(self, patch) -> None:
        patch(plain, "return value + 1", "return value + 2")
        assert plain(1) == 3

    def test_it_cannot_change_a_method_that_calls_super(self, patch) -> None:
        with pytest.raises(ValueError, match="free vars"):
            patch(Derived.__init__, "self.size = 1", "self.size = 2")

    def test_it_changes_nothing_of_a_decorated_function_and_raises_nothing(self, patch) -> None:
        patch(decorated, "return value + 1", "return value + 2")
        assert decorated(1) == 2

    def test_it_changes_no_default_and_raises_nothing(self, patch) -> None:
        patch(
            default,
            "def default(value: int, more: int = 1) -> int:",
            "def default(value: int, more: int = 5) -> int:",
        )
        assert default(1) == 2


@pytest.mark.releases
@pytest.mark.one_python
@pytest.mark.parametrize("release", ["0.5.1", "0.5.11", "0.5.23"])
def test_a_patched_constructor_calls_super(release: str) -> None:
    (text,) = of_sglang(release, "sglang/srt/layers/attention/triton_backend.py")
    (backend,) = (
        node for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef) and node.name == "TritonAttnBackend"
    )  # fmt: skip
    (init,) = (n for n in backend.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    assert "super().__init__()" in ast.unparse(init)


@pytest.mark.releases
@pytest.mark.one_python
@pytest.mark.parametrize("release", ["0.5.10", "0.5.11", "0.5.23"])
def test_sglang_patches_sources_when_the_model_has_been_loaded(release: str) -> None:
    (text,) = of_sglang(release, "sglang/srt/model_executor/model_runner.py")
    load = text[text.index("    def load_model(self):") :]
    before, _, _ = load.partition(
        "        if dumper.may_enable:\n            dumper.apply_source_patches()"
    )
    assert before != load
    assert re.search(r"[(= ]self\.model\b", before)
    assert "\n    def " not in before[1:]


def plain(value: int) -> int:
    return value + 1


def default(value: int, more: int = 1) -> int:
    return value + more


def logged(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


@logged
def decorated(value: int) -> int:
    return value + 1


class Base:
    def __init__(self) -> None:
        self.made = True


class Derived(Base):
    def __init__(self) -> None:
        super().__init__()
        self.size = 1
