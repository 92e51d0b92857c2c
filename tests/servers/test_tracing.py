"""Compilers that read source again, or trace what runs: they have to meet the patched text."""

from __future__ import annotations

from pathlib import Path

import pytest
from rig.environment import Environment
from rig.site import Site, make_site
from rig.stand_in import MODULE, Upstream, patch


pytestmark = pytest.mark.servers

KERNELS = '''
import torch
import triton
import triton.language as tl


class LayerCommunicator:
    def should_fuse(self, batch):
        size = batch.size
        return size > 0


def output(layer, batch, x):
    return x * 2 if LayerCommunicator.should_fuse(layer, batch) else x


@triton.jit
def double(x, n, BLOCK: tl.constexpr):
    """Read again, line by line, when it is compiled or interpreted."""
    at = tl.arange(0, BLOCK)
    tl.store(x + at, 2 * tl.load(x + at, mask=at < n), mask=at < n)
'''


@pytest.fixture
def site(tmp_path: Path) -> Site:
    upstream = Upstream()
    for release in ("1.1", "1.2"):
        upstream.releases[release][MODULE] = KERNELS
    site = make_site(tmp_path, files={"srt/layers/communicator.py": KERNELS})
    upstream.register(site.register, patch())
    return site


def run(site: Site, environment: Environment, code: str, select: str | None) -> str:
    file = site.root / "program.py"
    file.write_text(code)
    command = [str(environment.python), str(file)]
    return site.command(command, select=select, TRITON_INTERPRET="1").stdout


@pytest.mark.parametrize("select", [None, "1"])
def test_triton_interprets_a_kernel_behind_an_edit(
    site: Site, environment: Environment, select: str | None
) -> None:
    code = """
import torch
from sglang.srt.layers import communicator as c
x = torch.arange(4.0)
c.double[(1,)](x, 3, BLOCK=4)
print(x.tolist(), hasattr(c, "__commfix__"))
"""
    assert run(site, environment, code, select) == f"[0.0, 2.0, 4.0, 3.0] {select is not None}\n"


def test_triton_reads_the_kernels_own_lines(site: Site, environment: Environment) -> None:
    code = """
import inspect
from sglang.srt.layers import communicator as c
source = inspect.getsource(c.double.fn)
print(source.splitlines()[0], source.splitlines()[1].startswith("def double("))
"""
    assert run(site, environment, code, "1") == "@triton.jit True\n"


@pytest.mark.parametrize(("select", "expected"), [(None, 2.0), ("1", 1.0)])
def test_a_compiled_graph_runs_the_patched_function(
    site: Site, environment: Environment, select: str | None, expected: float
) -> None:
    """A wrapper put around the function would be bypassed here, without a warning."""
    code = """
import torch, types
from sglang.srt.layers import communicator as c
layer, batch = types.SimpleNamespace(scattered=True), types.SimpleNamespace(size=1)
compiled = torch.compile(c.output, backend="eager", fullgraph=True)
one = torch.ones(())
print(c.output(layer, batch, one).item(), compiled(layer, batch, one).item())
"""
    assert run(site, environment, code, select) == f"{expected} {expected}\n"


def test_who_compiles_the_edited_function_runs_it_patched(
    site: Site, environment: Environment
) -> None:
    """What stands under its name then is an object of torch's, which is no reason to complain."""
    code = """
import torch, types
from sglang.srt.layers import communicator as c
from sglang_commfix.run.session import verify
options = {"backend": "eager", "fullgraph": True}
c.LayerCommunicator.should_fuse = torch.compile(c.LayerCommunicator.should_fuse, **options)
c.output = torch.compile(c.output, **options)
verify()
layer, batch = types.SimpleNamespace(scattered=True), types.SimpleNamespace(size=1)
print(c.LayerCommunicator.should_fuse(layer, batch), c.output(layer, batch, torch.ones(())).item())
"""
    file = site.root / "program.py"
    file.write_text(code)
    result = site.command([str(environment.python), str(file)], SGLANG_COMMFIX_STRICT="1")
    assert result.stdout == "False 1.0\n"
    assert "ERROR" not in result.stderr
