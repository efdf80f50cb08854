"""What the README tells people to type exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import typer.main

from flows.cli import app
from tests.source_tree import ROOT

README = (ROOT / "README.md").read_text() if (ROOT / "README.md").is_file() else ""
CODE_BLOCKS = "\n".join(re.findall(r"```(?:sh|bash|shell|console)?\n(.*?)```", README, flags=re.DOTALL))


def test_the_two_commands_stand_at_the_top() -> None:
    top = "\n".join(README.splitlines()[:40])
    assert "make demo" in top
    assert "make test" in top


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z]+)", CODE_BLOCKS))))
def test_make_targets_exist(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", sorted(set(re.findall(r"\bimprint ([a-z][a-z-]*)", CODE_BLOCKS))))
def test_commands_exist(command: str) -> None:
    assert command in typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_ci_calls_what_the_readme_says() -> None:
    script = Path(ROOT / ".ci" / "run").read_text()
    assert "make test" in script
    assert "make demo PARAMS=params/smoke.yaml" in script
