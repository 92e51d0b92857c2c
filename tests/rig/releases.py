"""The sglang releases that the rig knows, and what each needs beside the common environment."""

from __future__ import annotations

import re
from dataclasses import dataclass


# Lives in the virtual environment's own site-packages, as on a user's machine, so that its
# entry points and start-up hooks are found there. All others are folders put in front of it.
INSTALLED = "0.5.11"


@dataclass(frozen=True)
class Release:
    """One sglang release; `transformers` names the version it needs instead of the common one."""

    version: str
    transformers: str | None = None

    @property
    def binds_every_stage(self) -> bool:
        """It wants cores for the ranks of all pipeline stages, not for those of one."""
        return tuple(map(int, re.findall(r"\d+", self.version)))[:3] >= (0, 5, 19)


def _by_version(transformers: str | None, *versions: str) -> dict[str, Release]:
    return {version: Release(version, transformers) for version in versions}


# Servers start with these.
RELEASES = {
    **_by_version("4.57.1", "0.5.9"),
    **_by_version("5.3.0", "0.5.10.post1"),
    **_by_version(None, "0.5.11", "0.5.12.post1"),
    **_by_version("5.8.1", "0.5.13"),
    **_by_version("5.12.1", "0.5.16", "0.5.17", "0.5.20"),
}

# The environment has enough for these to run a model's layers alone: see `layers/`.
LAYERS = {
    **_by_version("4.57.1", "0.5.1", "0.5.1.post1", "0.5.1.post2", "0.5.1.post3", "0.5.2"),
    **_by_version("4.57.1", "0.5.3", "0.5.3.post1", "0.5.3.post2", "0.5.3.post3"),
    **_by_version("4.57.1", "0.5.4", "0.5.4.post1", "0.5.4.post2", "0.5.4.post3"),
    **_by_version("4.57.1", "0.5.5", "0.5.5.post1", "0.5.5.post2", "0.5.5.post3"),
    **_by_version("4.57.1", "0.5.6", "0.5.6.post1", "0.5.6.post2", "0.5.7"),
    **_by_version("4.57.1", "0.5.8", "0.5.8.post1", "0.5.9"),
    **_by_version("5.3.0", "0.5.10", "0.5.10.post1"),
    **_by_version(None, "0.5.11", "0.5.12", "0.5.12.post1"),
    **_by_version("5.8.1", "0.5.13", "0.5.13.post1"),
    **_by_version("5.12.1", "0.5.14", "0.5.15", "0.5.15.post1", "0.5.16", "0.5.17", "0.5.18"),
    **_by_version("5.12.1", "0.5.19", "0.5.20"),
}

# And for these to be asked what they decide: see `decisions/`.
DECISIONS = LAYERS
