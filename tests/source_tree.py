"""The project's own modules, read as syntax trees: what the structural tests look at."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from imprint.core.keys import PACKAGES

ROOT = Path(__file__).resolve().parents[1]


@cache
def load_modules() -> dict[str, ast.Module]:
    """Dotted name => syntax tree of every module; a package goes by its own name."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {name_module(path): ast.parse(path.read_text(), str(path)) for path in paths}


def name_module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
