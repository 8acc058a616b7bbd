"""Which source files make a dataset's samples: those of its classes, and all that these import from their packages."""

from __future__ import annotations

import ast
import hashlib
import pkgutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import NamedTuple

from segtrain.errors import ConfigError

_NOT_OURS = ("torch", "typing", "builtins", "abc")
_FOR_TYPES_ONLY = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
_INSTALLED = ("site-packages", "dist-packages")


class _Module(NamedTuple):
    """A module, loaded or not."""

    name: str
    file: Path | None
    """None: a folder without `__init__.py`, which has no code of its own, or a part of Python itself."""
    package: str
    """What its relative imports start from; empty for a module without a package."""
    folders: list[str]
    """Where its own modules lie, if it is a package."""


def sources_of(kind: type) -> dict[str, str]:
    """Module name -> SHA-256, in hex, of its file, for every module that decides what a dataset class reads.

    These are the modules of the class and its bases, what they import from the packages of these (a module without a
    package: from its folder), directly or through one another, and the `__init__.py` of every package around them.
    Other packages change with their versions. It does not matter what this process has loaded, so that another one
    finds the same. Imports inside functions count, since readers may be imported so; those of segtrain's own functions
    do not, since what augments samples is imported so.

    Not seen: modules named while the program runs (`importlib.import_module`, a module's `__getattr__`, `__all__` of a
    starred import), and what a `.pyc` without its source imports.

    Raises:
        ConfigError: a source file cannot be read, or is no longer Python.
    """
    bases = [base for base in kind.__mro__ if _top(base.__module__) not in _NOT_OURS]
    roots = [_with_file(base) for base in bases]
    packages = {_top(root.package or root.name) for root in roots}
    beside = _own_folders(roots)
    waiting = [root.name for root in roots]
    seen: set[str] = set()
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        module = None if name in seen else _find(name)
        seen.add(name)
        if module is None:
            continue
        waiting += [name.rpartition(".")[0]] if "." in name else []  # a package's __init__ runs before its modules
        if module.file is None:
            continue
        content = _content(module.file, name)
        found[name] = hashlib.sha256(content).hexdigest()
        waiting += [one for one in _imported(module, content) if _top(one) in packages or _lies_in(beside, one)]
    return found


def _top(name: str) -> str:
    return name.partition(".")[0]


def _find(name: str) -> _Module | None:
    """Finds a module without importing anything, which might have effects; None: there is no such module."""
    module = sys.modules.get(name)
    if module is None:
        return _search(name)
    file = getattr(module, "__file__", None)
    package = getattr(module, "__package__", None)
    return _Module(name, _source(file), package or "", [*(getattr(module, "__path__", None) or ())])


def _search(name: str) -> _Module | None:
    if "." in name:
        parent = _find(name.rpartition(".")[0])  # find_spec would import it
        finders = [pkgutil.get_importer(folder) for folder in (parent.folders if parent else ())]
        specs = [finder.find_spec(name) for finder in finders if finder is not None]
    else:
        specs = [find_spec(name)]
    places = [spec for spec in specs if spec is not None]
    for spec in places:
        if spec.loader is not None:
            file = spec.origin if spec.has_location else None
            return _Module(name, _source(file), spec.parent or "", [*(spec.submodule_search_locations or ())])
    folders = [folder for spec in places for folder in spec.submodule_search_locations or ()]
    return _Module(name, None, name, folders) if folders else None


def _source(file: str | None) -> Path | None:
    """The file that Python would read first: the source of a `.pyc` if there is one."""
    if file is None:
        return None
    source = Path(file).with_suffix(".py")
    return source if Path(file).suffix == ".pyc" and source.exists() else Path(file)


def _with_file(kind: type) -> _Module:
    module = _find(kind.__module__)
    if module is None or module.file is None or not module.file.exists():
        raise ConfigError(
            f"the source file of {kind.__module__}.{kind.__qualname__} cannot be read",
            where=None if module is None else module.file,
            expected="a class in a file: a cache on disk must know when the class changes",
            fix="put the class into a module of its own, or set data.cache=ram or data.cache=none",
        )
    return module


def _own_folders(modules: Iterable[_Module]) -> set[Path]:
    """The folders of modules without a package, whose other files are the user's too; none where packages are put."""
    folders = {module.file.parent.resolve() for module in modules if module.file and not module.package}
    folders -= {Path(path).resolve() for path in sysconfig.get_paths().values()}
    return {folder for folder in folders if folder.name not in _INSTALLED}


def _lies_in(folders: set[Path], name: str) -> bool:
    """Whether the module, or the package that it is in, lies in one of the folders."""
    module = _find(_top(name)) if folders else None
    if module is None:
        return False
    place = module.folders[0] if module.folders else module.file
    return place is not None and Path(place).resolve().parent in folders


def _content(file: Path, name: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise _changed(f"the source file of the module {name} cannot be read", file) from error


def _imported(module: _Module, content: bytes) -> Iterator[str]:
    """Names of modules that a module imports, and names in them, which may be modules too."""
    assert module.file is not None
    waiting: list[ast.AST] = [_parsed(module, content)] if module.file.suffix == ".py" else []
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _imported_from(node, module.package)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in _FOR_TYPES_ONLY:
            waiting += node.orelse
        elif not (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _top(module.name) == _top(__name__)):
            waiting += ast.iter_child_nodes(node)


def _imported_from(node: ast.ImportFrom, package: str) -> Iterator[str]:
    home = "." * node.level + (node.module or "")
    if node.level:
        try:
            home = resolve_name(home, package)
        except ImportError:
            return  # beyond the outermost package: it fails in every process, and the module lives with that
    yield home
    yield from (f"{home}.{alias.name}" for alias in node.names)


def _parsed(module: _Module, content: bytes) -> ast.Module:
    try:
        return ast.parse(content, filename=str(module.file))
    except (SyntaxError, ValueError) as error:
        if module.name not in sys.modules:
            return ast.Module(body=[], type_ignores=[])  # for another Python, perhaps: it imports nothing in this one
        raise _changed(f"the source file of the module {module.name} is not Python: {error}", module.file) from error


def _changed(found: str, file: Path | None) -> ConfigError:
    return ConfigError(
        found,
        where=file,
        expected="the file as it was loaded: a cache on disk must know when it changes",
        fix="put the file right and start again, or set data.cache=ram or data.cache=none",
    )
