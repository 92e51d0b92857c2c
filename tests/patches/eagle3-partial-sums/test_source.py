"""Which models read between two layers, in the source of every release."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from published import RELEASES, package_of  # type: ignore[import-not-found]


pytestmark = pytest.mark.releases

REPOSITORY = Path(__file__).parents[3]
