"""The package as people install it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import packaging
import pytest
import wrapt


pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parents[2]
AT_START = "import sys; print('sglang_commfix' in sys.modules)"
DEPENDENCIES = {Path(m.__file__).parents[1] for m in (packaging, wrapt)}


def run(*command: str | Path, code: int = 0, **environ: str) -> str:
    clean = {
        k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "COVERAGE_PROCESS_CONFIG"}
    }
    result = subprocess.run(
        [str(word) for word in command],
        env=clean | environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree, without what tools leave there: building writes into it."""
    folder = tmp_path_factory.mktemp("build") / "checkout"
    hidden = shutil.ignore_patterns(".*", "__pycache__", "dist", "build")
    shutil.copytree(ROOT, folder, ignore=hidden)
    return folder


@pytest.fixture(scope="session")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, checkout)
    return out


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A fresh virtual environment's Python."""
    venv.create(tmp_path / "venv", with_pip=True)
    return tmp_path / "venv" / "bin" / "python"


def site_packages(python: Path) -> Path:
    return Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())


def test_the_wheel_holds_the_start_up_files_at_its_root_and_the_register(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read("sglang_commfix.pth") == (
            b"import sglang_commfix; sglang_commfix.init()\n"
        )
        assert archive.read("sglang_commfix.start") == b"sglang_commfix:init\n"
    for name in (
        "py.typed",
        "patches/releases.json",
        "patches/24785-sum-len-contract/patch.toml",
        "patches/24785-sum-len-contract/fingerprints.json",
        "patches/19918-dummy-run-alignment/alignment.py",
        "patches/24785-sum-len-contract/locks.json.gz",
        "locks/index.json",
        "run/shim/sitecustomize.py",
    ):
        assert f"sglang_commfix/{name}" in names
    assert not [name for name in names if name.endswith(("/locks.json", "/keys.json"))]
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {
        "sglang_commfix",
        "sglang_commfix.pth",
        "sglang_commfix.start",
    }


def test_the_wheel_has_the_locks_of_every_release_and_they_are_small(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    keys = json.loads((ROOT / "patches" / "keys.json").read_text())
    with zipfile.ZipFile(wheel) as archive:
        locks = {
            info.filename: info.file_size for info in archive.infolist() if "lock" in info.filename
        }
    assert {f"sglang_commfix/locks/{key}.json.gz" for key in keys.values()} <= locks.keys()
    entries = len(list((ROOT / "patches").glob("*/patch.toml")))
    total = sum(size for name, size in locks.items() if name.endswith(("json", "gz")))
    assert total <= 20_000 * entries
    assert max(size for name, size in locks.items() if "/locks/" in name) <= 30_000


def test_the_wheel_is_the_same_byte_for_byte_wherever_and_however_it_is_built(
    built: Path, checkout: Path, tmp_path: Path
) -> None:
    """Another folder, files that came there in another order, other permissions, time zone, hashes."""
    (wheel,) = built.glob("*.whl")
    copy = tmp_path / "another folder"
    for file in sorted((f for f in checkout.rglob("*") if f.is_file()), reverse=True):
        (copy / file.relative_to(checkout)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy / file.relative_to(checkout))
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", copy]
    other = {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C", "TMPDIR": str(tmp_path)}
    run("sh", "-c", 'umask 077; exec "$@"', "sh", *build, **other)
    assert (tmp_path / "dist" / wheel.name).read_bytes() == wheel.read_bytes()


def test_another_source_date_epoch_changes_the_dates_in_the_wheel_alone(
    built: Path, checkout: Path, tmp_path: Path
) -> None:
    (wheel,) = built.glob("*.whl")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, checkout]
    run(*build, SOURCE_DATE_EPOCH="1700000000")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(tmp_path / wheel.name) as other:
        assert {info.date_time[:3] for info in one.infolist()} == {(2020, 2, 2)}
        assert {info.date_time[:3] for info in other.infolist()} == {(2023, 11, 14)}
        assert one.namelist() == other.namelist()
        assert [one.read(name) for name in one.namelist()] == [
            other.read(name) for name in other.namelist()
        ]


def test_the_wheel_needs_wrapt_and_packaging_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = message_from_string(archive.read(name).decode())
    assert sorted(metadata.get_all("Requires-Dist", [])) == [
        "packaging>=22",
        "tomli>=2; python_version < '3.11'",
        "wrapt<3,>=2.4",
    ]
    assert metadata["Requires-Python"] == ">=3.10"


def test_the_sdist_holds_all_that_tests_and_maintainers_need(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "Makefile",
        "noxfile.py",
        "README.md",
        "LICENSE",
        "startup/sglang_commfix.pth",
        "patches/releases.json",
        "tests/conftest.py",
        "tests/patches/24785-sum-len-contract/test_servers.py",
        "tools/fingerprints.py",
        "docs/architecture.md",
    } <= names


@pytest.mark.parametrize("source", ["wheel", "sdist", "editable"])
def test_every_way_of_installing_starts_the_hook_and_leaves_nothing_behind(
    source: str, built: Path, checkout: Path, python: Path
) -> None:
    what = {
        "wheel": [str(next(built.glob("*.whl")))],
        "sdist": [str(next(built.glob("*.tar.gz")))],
        "editable": ["--editable", str(checkout)],
    }[source]
    before = sorted(site_packages(python).iterdir())
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", *what)
    assert run(python, "-c", AT_START) == "True\n"
    assert run(python, "-I", "-c", AT_START) == "True\n"
    assert run(python, "-S", "-c", AT_START) == "False\n"
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "sglang-commfix")
    assert sorted(site_packages(python).iterdir()) == before
    assert run(python, "-c", AT_START) == "False\n"


def test_the_command_works_from_the_installed_wheel(built: Path, python: Path) -> None:
    run(python, "-m", "pip", "install", "--quiet", next(built.glob("*.whl")))
    (site_packages(python) / "pyproject.toml").touch()  # as some other package's mistake
    command = python.with_name("sglang-commfix")
    assert run(command, "--version") == run(python, "-m", "sglang_commfix", "--version")
    assert "24785-sum-len-contract" in run(command, "explain", "24785")


def test_uv_installs_the_start_up_file_too(built: Path, python: Path) -> None:
    uv = [sys.executable, "-m", "uv", "pip"]
    run(*uv, "install", "--quiet", "--no-deps", "--python", python, next(built.glob("*.whl")))
    assert run(python, "-c", AT_START) == "True\n"
    run(*uv, "uninstall", "--quiet", "--python", python, "sglang-commfix")
    assert run(python, "-c", AT_START) == "False\n"


def test_pipx_gives_the_command_an_environment_of_its_own(built: Path, tmp_path: Path) -> None:
    folders = {"PIPX_HOME": str(tmp_path / "home"), "PIPX_BIN_DIR": str(tmp_path / "bin")}
    pipx = [sys.executable, "-m", "pipx"]
    run(*pipx, "install", "--quiet", next(built.glob("*.whl")), **folders)
    assert "24785" in run(tmp_path / "bin" / "sglang-commfix", "explain", "24785")
    run(*pipx, "uninstall", "sglang-commfix", **folders)
    assert not (tmp_path / "bin" / "sglang-commfix").exists()


def test_a_target_folder_on_the_path_does_not_start_the_hook_and_status_says_so(
    built: Path, python: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    (target / "sglang" / "srt").mkdir(parents=True)
    (target / "sglang" / "__init__.py").touch()
    wheel = next(built.glob("*.whl"))
    run(python, "-m", "pip", "install", "--quiet", "--target", target, wheel)
    assert run(python, "-c", AT_START, PYTHONPATH=str(target)) == "False\n"
    out = run(python, "-m", "sglang_commfix", "status", code=1, PYTHONPATH=str(target))
    assert "neither the fault nor its fix is known here" in out
    assert "THE START-UP HOOK DOES NOT RUN" in out
    words = [python, "-m", "sglang_commfix", "run", "--", python, "-c", AT_START]
    assert run(*words, PYTHONPATH=str(target)) == "True\n"
