"""What the releases before 0.5.8, and 0.5.15, import and the rig's environment lacks.

For runs of a model's layers alone (`rig.layers`). Nothing that stands in for a missing package here
can be called.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from rig.shims import cpu


if TYPE_CHECKING:
    from collections.abc import Mapping


# Modules of packages that are not there, and where the names imported from them are taken from.
# On a CPU sglang replaces its own norms and activations with vllm's; here it keeps its own, which
# know about all-reduce fusion. None: a placeholder for any name.
_MODULES = {
    "vllm": None,
    "vllm._custom_ops": None,
    "vllm.model_executor": None,
    "vllm.model_executor.layers": None,
    "vllm.model_executor.layers.activation": "sglang.srt.layers.activation",
    "vllm.model_executor.layers.layernorm": "sglang.srt.layers.layernorm",
    "xgrammar": None,
    "xgrammar.structural_tag": None,
}


# A kernel that 0.5.15 imports wherever there is no ROCm; it is written in a language that comes
# with CUTLASS.
_NEEDS_CUTLASS = "sglang.jit_kernel.dsa.cutedsl_paged_mqa_logits"


def register() -> None:
    """Arm them; a package that is there is left alone."""
    packages = {name.partition(".")[0] for name in _MODULES}
    missing = {name for name in packages if importlib.util.find_spec(name) is None}
    modules = {name: own for name, own in _MODULES.items() if name.partition(".")[0] in missing}
    sys.meta_path.append(_Finder(modules))
    if importlib.util.find_spec("cutlass") is None:
        # In front, since the file itself is there.
        sys.meta_path.insert(0, _Finder({_NEEDS_CUTLASS: None}))
    wrapt.register_post_import_hook(_answer_for_amx, "torch")
    wrapt.register_post_import_hook(_name_every_kernel, "sgl_kernel")
    wrapt.register_post_import_hook(_register_collectives_for_cpu, "sglang.srt.utils")


def _answer_for_amx(torch: Any) -> None:
    """Up to 0.5.3 sglang asks by a name that torch has given up."""
    if not hasattr(torch._C._cpu, "_is_amx_tile_supported"):
        torch._C._cpu._is_amx_tile_supported = lambda: False


def _name_every_kernel(sgl_kernel: Any) -> None:
    """0.5.2 imports some by name that later releases import on a GPU alone."""

    def get(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return sgl_kernel.unavailable(f"sgl_kernel.{name}")

    sgl_kernel.__getattr__ = get


def _register_collectives_for_cpu(utils: ModuleType) -> None:
    """Up to 0.5.2 the module that the shim for servers acts on is still part of this one."""
    if not hasattr(utils, "__path__"):
        cpu.register_collectives_for_cpu(utils)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, modules: Mapping[str, str | None]) -> None:
        self._modules = modules

    def find_spec(
        self, name: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._modules:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Absent(spec.name, self._modules[spec.name])

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Absent(ModuleType):
    def __init__(self, name: str, own: str | None) -> None:
        super().__init__(name)
        self._own = own

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self._own is not None:
            return getattr(sys.modules[self._own], name)
        return type(name, (_Placeholder,), {"__module__": self.__name__})


class _Placeholder:
    def __init__(self, *_: object, **__: object) -> None:
        raise NotImplementedError(f"{type(self).__module__} is not installed")

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: object) -> Any:
        """The protocol of 0.5.4 to 0.5.7 has a field of such a type."""
        return {"type": "any"}
