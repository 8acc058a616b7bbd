"""Which source files make a dataset's samples: those of its classes, and all that these import from their packages."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType

from segtrain.errors import ConfigError

_NOT_OURS = ("torch", "typing", "builtins", "abc")


def sources_of(kind: type) -> dict[str, str]:
    """Module name -> SHA-256, in hex, of its file, for every module that decides what a dataset class reads.

    These are the modules of the class and its bases, and what they import from the packages of these, directly or
    through one another; other packages change with their versions. An import inside a function is not followed: it may
    never run, and what augments samples is imported so.

    Raises:
        ConfigError: the source of one of the classes cannot be read.
    """
    bases = [base for base in kind.__mro__ if _package(base.__module__) not in _NOT_OURS]
    packages = {_package(base.__module__) for base in bases}
    for base in bases:
        _refuse_without_file(base)
    waiting = [base.__module__ for base in bases]
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        file = _file_of(sys.modules[name])
        if name in found or file is None:
            continue
        content = file.read_bytes()
        found[name] = hashlib.sha256(content).hexdigest()
        if file.suffix == ".py":
            imported = _imported(ast.parse(content), sys.modules[name])
            waiting += [one for one in imported if _package(one) in packages and one in sys.modules]
    return found


def _package(name: str) -> str:
    return name.partition(".")[0]


def _file_of(module: ModuleType) -> Path | None:
    """None: a folder without `__init__.py`, which has no code of its own."""
    file = getattr(module, "__file__", None)
    return None if file is None else Path(inspect.getsourcefile(module) or file)


def _imported(tree: ast.Module, module: ModuleType) -> Iterator[str]:
    """Names of modules that a module imports when it is loaded itself, and names in them, which may be modules too."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            home = resolve_name(source, module.__package__) if node.level else source
            yield home
            yield from (f"{home}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse  # whether the rest is loaded is another module's doing
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def _refuse_without_file(kind: type) -> None:
    try:
        Path(str(inspect.getsourcefile(kind))).stat()
    except (OSError, TypeError) as error:
        raise ConfigError(
            f"the source file of {kind.__module__}.{kind.__qualname__} cannot be read",
            expected="a class in a file: a cache on disk must know when the class changes",
            fix="put the class into a module of its own, or set data.cache=ram or data.cache=none",
        ) from error
