"""Sizes and names that keep the code readable; ruff holds the rest."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.source_tree import find_path, load_modules

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
MAX_ENTRY_LINES = 80
MAX_NESTING = 3
MAX_POSITIONAL = 2
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try)
Function = ast.FunctionDef | ast.AsyncFunctionDef

MODULES = pytest.mark.parametrize("module", sorted(load_modules()))


@MODULES
def test_file_size(module: str) -> None:
    lines = len(find_path(module).read_text().splitlines())
    assert lines <= (MAX_ENTRY_LINES if module.endswith("__main__") else MAX_FILE_LINES)


@MODULES
def test_functions_are_short_and_flat(module: str) -> None:
    for function in list_functions(module):
        where = f"{module}:{function.lineno} {function.name}"
        first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
        assert function.end_lineno is not None
        assert function.end_lineno - first < MAX_FUNCTION_LINES, f"{where} is too long"
        assert measure_nesting(function.body) <= MAX_NESTING, f"{where} is nested too deeply"


@MODULES
def test_arguments_after_the_second_are_keyword_only(module: str) -> None:
    for function in list_functions(module):
        if function.name.startswith("_") or function.decorator_list:
            continue  # our own business, or a framework's signature
        names = [argument.arg for argument in function.args.posonlyargs + function.args.args]
        names = [name for name in names if name not in ("self", "cls")]
        assert len(names) <= MAX_POSITIONAL, f"{module}:{function.lineno} {function.name}: {names}"


@MODULES
def test_public_functions_say_what_they_do(module: str) -> None:
    for node in load_modules()[module].body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            short = isinstance(node, ast.ClassDef) and all(not isinstance(item, ast.FunctionDef) for item in node.body)
            assert short or ast.get_docstring(node), f"{module}:{node.lineno} {node.name} has no docstring"


@MODULES
def test_names_mean_something(module: str) -> None:
    assert not VAGUE_NAMES & set(module.split("."))


def list_functions(module: str) -> Iterator[Function]:
    return (node for node in ast.walk(load_modules()[module]) if isinstance(node, Function))


def measure_nesting(body: list[ast.stmt]) -> int:
    """Depth of blocks; an `elif` and a function in a function do not count as deeper."""
    return max((_measure_statement(statement) for statement in body), default=0)


def _measure_statement(statement: ast.stmt) -> int:
    if isinstance(statement, Function):
        return measure_nesting(statement.body)
    if not isinstance(statement, BLOCKS):
        return 0
    inner = [measure_nesting(getattr(statement, name, [])) for name in ("body", "finalbody")]
    inner += [measure_nesting(handler.body) for handler in getattr(statement, "handlers", [])]
    orelse = getattr(statement, "orelse", [])
    is_elif = isinstance(statement, ast.If) and len(orelse) == 1 and isinstance(orelse[0], ast.If)
    return max(1 + max(inner), measure_nesting(orelse) + (0 if is_elif else 1 if orelse else 0))
