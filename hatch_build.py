"""Keep the register out of editable installations, which read it from the checkout."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EditableBuildHook(BuildHookInterface[Any]):
    """Ship the start-up files alone with an editable wheel.

    A copy of ``patches/`` would go stale there, and leave its folder behind at uninstallation.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Replace the wheel's ``force-include`` by its files for the root of site-packages."""
        if version == "editable":
            forced: dict[str, str] = self.build_config.get_force_include()
            build_data["force_include_editable"] = {
                source: place for source, place in forced.items() if "/" not in place
            }
