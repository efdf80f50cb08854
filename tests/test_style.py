"""Sizes and names that keep the code readable; ruff holds the rest. Each test lists all that breaks its rule."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from imprint.core.keys import find_path
from tests.source_tree import load_modules

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
MAX_ENTRY_LINES = 80
MAX_NESTING = 3
MAX_POSITIONAL = 5
SELF_EVIDENT_LINES = 3
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
BRANCHES = (ast.If, ast.For, ast.While, ast.Try)


def test_files_are_small() -> None:
    sizes = {module: len(find_path(module).read_text().splitlines()) for module in load_modules()}
    limits = {module: MAX_ENTRY_LINES if module.endswith("__main__") else MAX_FILE_LINES for module in sizes}
    assert {module: size for module, size in sizes.items() if size > limits[module]} == {}


def test_functions_are_short() -> None:
    sizes = {where: measure_lines(function) for where, function in list_functions()}
    assert {where: size for where, size in sizes.items() if size > MAX_FUNCTION_LINES} == {}


def test_functions_are_flat() -> None:
    depths = {where: measure_nesting(function.body) for where, function in list_functions()}
    assert {where: depth for where, depth in depths.items() if depth > MAX_NESTING} == {}


def test_long_argument_lists_are_keyword_only() -> None:
    counts = {where: count_positional(node) for where, node in list_functions() if is_public(where, node)}
    assert {where: count for where, count in counts.items() if count > MAX_POSITIONAL} == {}


def test_modules_and_public_functions_say_what_they_do() -> None:
    silent = [module for module, tree in load_modules().items() if tree.body and not is_explained(module, tree)]
    public = ((where, node) for where, node in list_functions() if is_public(where, node))
    silent += [
        where for where, node in public if measure_lines(node) > SELF_EVIDENT_LINES and not ast.get_docstring(node)
    ]
    assert silent == []


def test_module_names_mean_something() -> None:
    assert [module for module in load_modules() if VAGUE_NAMES & set(module.split("."))] == []


def is_explained(module: str, tree: ast.Module) -> bool:
    return module.endswith("__main__") or bool(ast.get_docstring(tree))


def is_public(where: str, function: ast.FunctionDef) -> bool:
    """A module's own function; commands, whose arguments are options, apart."""
    module = where.split(":")[0]
    is_command = "typer." in ast.unparse(function.args)
    return function in load_modules()[module].body and not function.name.startswith("_") and not is_command


def list_functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for module, tree in load_modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield f"{module}:{node.lineno} {node.name}", node


def measure_lines(function: ast.FunctionDef) -> int:
    """From `def` to the last line."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def count_positional(function: ast.FunctionDef) -> int:
    arguments = function.args.posonlyargs + function.args.args
    return len([argument for argument in arguments if argument.arg not in ("self", "cls")])


def measure_nesting(body: list[ast.stmt]) -> int:
    """Depth of branches and loops; `elif`, `with` and a function in a function do not count as deeper."""
    return max((_measure_statement(statement) for statement in body), default=0)


def _measure_statement(statement: ast.stmt) -> int:
    if isinstance(statement, ast.With):
        return measure_nesting(statement.body)
    if not isinstance(statement, BRANCHES):
        return 0
    inner = [measure_nesting(getattr(statement, name, [])) for name in ("body", "finalbody")]
    inner += [measure_nesting(handler.body) for handler in getattr(statement, "handlers", [])]
    orelse = getattr(statement, "orelse", [])
    is_elif = isinstance(statement, ast.If) and len(orelse) == 1 and isinstance(orelse[0], ast.If)
    return max(1 + max(inner), measure_nesting(orelse) + (1 if orelse and not is_elif else 0))
