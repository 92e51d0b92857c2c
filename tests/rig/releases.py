"""The sglang releases that the rig can serve, and what each needs beside the common environment."""

from __future__ import annotations

from dataclasses import dataclass


# Lives in the virtual environment's own site-packages, as on a user's machine, so that its
# entry points and start-up hooks are found there. All others are folders put in front of it.
INSTALLED = "0.5.11"


@dataclass(frozen=True)
class Release:
    """One sglang release; `transformers` names the version it needs instead of the common one."""

    version: str
    transformers: str | None = None


RELEASES = {
    release.version: release
    for release in (
        Release("0.5.9", transformers="4.57.1"),
        Release("0.5.10.post1", transformers="5.3.0"),
        Release("0.5.11"),
        Release("0.5.12.post1"),
        Release("0.5.13", transformers="5.8.1"),
    )
}
