"""The published releases that the tests of this folder read."""

from __future__ import annotations

import json
from pathlib import Path

from fingerprints import fetch, wanted_files

from sglang_commfix.register import load


RELEASES: list[str] = json.loads(
    (Path(__file__).parents[2] / "patches" / "releases.json").read_text()
)


def released(release: str) -> Path:
    """The folder with the files that the register looks at, downloaded once."""
    return fetch(release, wanted_files(load().patches))
