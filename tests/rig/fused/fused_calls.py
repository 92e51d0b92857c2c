"""What the functions of a release make of a fused all-reduce that declines: see declining.py."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rig.asking import ask
from rig.environment import Environment
from rig.releases import INSTALLED
from rig.sources.published import plan_for, tree


MODULES = ("layernorm", "flashinfer_comm_fusion")
PROGRAM = Path(__file__).with_name("declining.py")

# Everything in these files that the ranks run.
_SCOPES = (
    "FlashInferWorkspaceManager", "RMSNorm", "_forward_with_allreduce_fusion",
    "_get_workspace_manager", "_sync_allreduce_unavailable_across_tp",
    "ensure_workspace_initialized", "flashinfer_allreduce_residual_rmsnorm",
)  # fmt: skip


class Asked(NamedTuple):
    """A scene in a release as it is, or with these patches."""

    patches: str
    scene: str


class Answers:
    """A release's scenes, enacted by one program; releases with the same functions share them.

    Args:
        environment: whose Python has torch.
        folder: for files.
        scenes: `Scene` of declining.py by name, but for the files.
        asked: what is asked of a release.

    """

    def __init__(
        self,
        environment: Environment,
        folder: Path,
        scenes: Mapping[str, Mapping[str, Any]],
        asked: Callable[[str], Iterable[Asked]],
    ) -> None:
        self._environment = environment
        self._folder = folder
        self._scenes = scenes
        self._asked = asked
        self._keys: dict[str, dict[Asked, str]] = {}
        self._found: dict[str, list[Any]] = {}

    def __call__(self, release: str, patches: str, scene: str) -> list[Any]:
        """What each rank has found."""
        if release not in self._keys:
            self._enact(release)
        return self._found[self._keys[release][Asked(patches, scene)]]

    def _enact(self, release: str) -> None:
        wanted: dict[str, dict[str, Any]] = {}
        keys = self._keys[release] = {}
        for one in self._asked(release):
            texts = _texts(release, one.patches)
            keys[one] = key = json.dumps([one.scene, *map(_run, texts.values())])
            if key in self._found:
                continue
            files = {name: self._folder / f"{len(wanted)}-{name}.py" for name in texts}
            for name, data in texts.items():
                files[name].write_bytes(data)
            layernorm, fusion = map(str, files.values())
            wanted[key] = {**self._scenes[one.scene], "layernorm": layernorm, "fusion": fusion}
        if wanted:
            found = ask(INSTALLED, PROGRAM, *wanted.values(), environment=self._environment)
            self._found |= dict(zip(wanted, found, strict=True))


@cache
def _texts(release: str, patches: str) -> dict[str, bytes]:
    modules = plan_for(release, patches).modules if patches else {}
    texts = {}
    for name in MODULES:
        module = f"sglang.srt.layers.{name}"
        raw = tree(release).sglang.raw(module)
        assert raw is not None
        texts[name] = modules[module].after if module in modules else raw
    return texts


@cache
def _run(data: bytes) -> list[str]:
    found = []
    for node in ast.parse(data).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in _SCOPES:
            if node.name == "RMSNorm":
                found += [ast.dump(inner) for inner in node.body
                          if getattr(inner, "name", "") == "forward_with_allreduce_fusion"]  # fmt: skip
            else:
                found.append(ast.dump(node))
    return found
