"""A directory and a dotted name become the object of that name in the user's files."""

import ast
import builtins
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from elasticdl.errors import UserError
from elasticdl.model import usercode


@dataclass(frozen=True)
class Place:
    """Where a dotted name is defined, as far as can be told without importing it.

    Args:
        path: the file.
        module: its dotted module name in the zoo.
        attribute: the name in the module.
        shipped: whether it is in the zoo that comes with elasticdl.
    """

    path: str
    module: str
    attribute: str
    shipped: bool


@dataclass(frozen=True)
class _Names:
    """What a file has at its top level; `open` where only importing it would tell."""

    defined: frozenset[str]
    imported: frozenset[str]
    open: bool

    def has(self, name: str) -> bool:
        return name in self.defined or name in self.imported


class Zoo:
    """A directory of users' model files; the zoo that comes with elasticdl stands behind it.

    Files are imported under their own dotted names, and see each other under them, whatever else
    Python has under the same names: an `import` in a zoo file looks in the zoo first, and an
    `import` anywhere else never finds a zoo file in place of an installed module.

    Args:
        directory: path, `~` and `$VARS` are expanded; None or empty for elasticdl's zoo alone.

    Raises:
        UserError: there is no such directory.
    """

    def __init__(self, directory: str | None) -> None:
        self.directory = ""
        if directory:
            expanded = os.path.expandvars(os.path.expanduser(directory))
            self.directory = os.path.abspath(expanded)
            _check_directory(self.directory)
        self._importer = _Importer(self.directory)

    def find(self, dotted: str) -> Place:
        """Where `dotted` is, found without importing anything.

        Where only importing a file would tell what it defines, that file is the answer.

        Raises:
            UserError: the zoo has no such module or name, or two files define it.
        """
        return next(self._places(dotted))

    def load(self, dotted: str) -> Any:
        """The object that `dotted` names, its file imported.

        Raises:
            UserError: as `find`.
            UserCodeError: the file raised.
        """
        # More than one place comes only behind files of which `find` could not be sure.
        for place in self._places(dotted):
            with usercode.running(f"import of {place.path}"):
                if place.shipped:
                    module = importlib.import_module(f"elasticdl.zoo.{place.module}")
                else:
                    module = self._importer.load(place.module, place.path)
            if hasattr(module, place.attribute):
                return getattr(module, place.attribute)
        raise AssertionError("the places of a name end with an error")

    def _places(self, dotted: str) -> Iterator[Place]:
        """The files that may define `dotted`, likeliest first; then raises `UserError`."""
        *module, attribute = dotted.split(".")
        if not module or not all(part.isidentifier() for part in [*module, attribute]):
            raise UserError(
                f"{dotted}: expected module.name as in fintech.MyKerasModel, where fintech.py is "
                f"in the zoo; got {dotted!r}."
            )
        if self.directory:
            yield from _places_in(self.directory, module, attribute, shipped=False)
        yield from _places_in(usercode.SHIPPED_ZOO, module, attribute, shipped=True)
        raise UserError(_missing(self.directory or usercode.SHIPPED_ZOO, module, attribute))


def _places_in(
    root: str, module: Sequence[str], attribute: str, *, shipped: bool
) -> Iterator[Place]:
    base = os.path.join(root, *module)
    for path in (os.path.join(base, "__init__.py"), f"{base}.py"):
        if os.path.isfile(path):
            names = _names(path)
            if names.open or names.has(attribute):
                yield Place(path, ".".join(module), attribute, shipped)
    inside = {path: _names(path) for path in _files_in(base)}
    defining = [path for path, names in inside.items() if attribute in names.defined]
    defining = defining or [path for path, names in inside.items() if names.has(attribute)]
    if len(defining) > 1:
        name = ".".join([*module, attribute])
        full = [".".join([*module, _stem(path), attribute]) for path in defining]
        raise UserError(
            f"{name}: expected one file in {base} to define {attribute}; got "
            f"{', '.join(defining)}. Name the file too: {' or '.join(full)}."
        )
    for path in defining or [path for path, names in inside.items() if names.open]:
        yield Place(path, ".".join([*module, _stem(path)]), attribute, shipped)


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _files_in(directory: str) -> list[str]:
    """The importable files directly in `directory`, without its `__init__.py`, sorted."""
    if not os.path.isdir(directory):
        return []
    return [
        os.path.join(directory, name)
        for name in sorted(os.listdir(directory))
        if name.endswith(".py") and name[:-3].isidentifier() and name != "__init__.py"
    ]


def _names(path: str) -> _Names:
    defined: set[str] = set()
    imported: set[str] = set()
    # A file that is no Python fails better when it is imported: with its line and a caret.
    undecided = _Names(frozenset(), frozenset(), open=True)
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read(), path)
    except (SyntaxError, ValueError):
        return undecided
    is_open = False
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                defined.add(node.name)
                continue
            case ast.Import() | ast.ImportFrom():
                for alias in node.names:
                    is_open |= alias.name == "*"
                    imported.add(alias.asname or alias.name.partition(".")[0])
            case ast.Name(ctx=ast.Store()):
                defined.add(node.id)
            case ast.Call(func=ast.Name(id="globals" | "exec" | "setattr")):
                is_open = True
            case ast.Lambda():
                continue
        waiting.extend(ast.iter_child_nodes(node))
    is_open |= "__getattr__" in defined
    return _Names(frozenset(defined), frozenset(imported), is_open)


def _check_directory(directory: str) -> None:
    if os.path.isdir(directory):
        return
    if os.path.exists(directory):
        raise UserError(
            f"model_zoo: expected a directory; got the file {directory}. Give its directory, "
            f"{os.path.dirname(directory)}, and name the file in model_def."
        )
    parent = os.path.dirname(directory)
    if not os.path.isdir(parent):
        raise UserError(
            f"model_zoo: expected a directory; got {directory}, and there is no {parent} either."
        )
    beside = [entry.name for entry in os.scandir(parent) if entry.is_dir()]
    raise UserError(
        f"model_zoo: expected a directory; got {directory}, and {parent} has no "
        f"{os.path.basename(directory)}."
        + (usercode.nearest(os.path.basename(directory), beside) or " Give the right path.")
    )


def _missing(root: str, module: Sequence[str], attribute: str) -> str:
    """Why the zoo at `root` does not have the name: what was expected, what is there."""
    dotted = ".".join([*module, attribute])
    where = "the zoo that comes with elasticdl" if root == usercode.SHIPPED_ZOO else root
    base = os.path.join(root, *module)
    files = [p for p in (os.path.join(base, "__init__.py"), f"{base}.py") if os.path.isfile(p)]
    files += _files_in(base)
    if files:
        per_file = {path: sorted(_names(path).defined) for path in files}
        everything = [name for names in per_file.values() for name in names]
        found = "; ".join(
            f"{os.path.relpath(path, root)} defines {', '.join(_public(names)) or 'nothing'}"
            for path, names in per_file.items()
        )
        return (
            f"{dotted}: expected a definition of {attribute} in {where}; {found}."
            f"{usercode.nearest(attribute, everything) or ' Check the name.'}"
        )
    directory = root
    for part in module[:-1]:
        if not os.path.isdir(os.path.join(directory, part)):
            break
        directory = os.path.join(directory, part)
    there = _modules_in(directory)
    depth = len(os.path.relpath(directory, root).split(os.sep)) if directory != root else 0
    wanted = "/".join(module)
    return (
        f"{dotted}: expected {wanted}.py or a directory {wanted} with Python files in {where}; "
        f"found {', '.join(there.values()) or 'no Python files'}"
        f"{' in ' + '/'.join(module[:depth]) if depth else ''}."
        f"{usercode.nearest(module[depth], there) or ' Check the name and --model_zoo.'}"
    )


def _public(names: Sequence[str]) -> list[str]:
    return [name for name in names if not name.startswith("_")]


def _modules_in(directory: str) -> dict[str, str]:
    """Module names in `directory`, each with how it appears there: `fintech.py`, `fintech/`."""
    found = {_stem(path): os.path.basename(path) for path in _files_in(directory)}
    for name in sorted(os.listdir(directory)):
        inside = os.path.join(directory, name)
        if name.isidentifier() and (
            _files_in(inside) or os.path.isfile(os.path.join(inside, "__init__.py"))
        ):
            found.setdefault(name, f"{name}/")
    return found


# ---- importing --------------------------------------------------------------------------------

_ZOO = object()  # marks the modules that stand in `sys.modules` for a zoo


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a zoo file; leaves no bytecode beside it, which may be in a trained model."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        del path, data, _mode


class _Importer:
    """Imports the files of one zoo.

    A zoo module has an `__import__` of its own among its builtins, which looks in the zoo first.
    So neither `sys.path` nor the modules of others change, and zoos do not see each other.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._modules: dict[str, ModuleType] = {}  # by path; of a package without file, its folder
        self._packages: set[str] = set()  # names that belong to this zoo for certain
        self._lock = threading.RLock()
        self._builtins = {**vars(builtins), "__import__": self._import_statement}

    def load(self, name: str, path: str) -> ModuleType:
        """The module `name` of the zoo, which is the file at `path`."""
        with self._lock:
            self._packages.add(name.partition(".")[0])
            parent = name.rpartition(".")[0]
            if parent:
                self._import(parent)
            return self._module(name, path, self._resolve(name)[1])

    def _resolve(self, name: str) -> tuple[str | None, list[str] | None]:
        """File of the module `name`, and where its submodules are; None for what it has not."""
        base = os.path.join(self._root, *name.split("."))
        init = os.path.join(base, "__init__.py")
        below = [base] if os.path.isdir(base) else None
        if os.path.isfile(init):
            return init, below
        # Where regressor.py has a directory regressor/ beside it, its files are importable too.
        if os.path.isfile(f"{base}.py"):
            return f"{base}.py", below
        return None, below if below and _modules_in(base) else None

    def _owns(self, top: str) -> bool:
        """Whether a top-level name means a module of this zoo, for the zoo's own files."""
        if top in self._packages:
            return True
        # A zoo may be a checkout that has elasticdl itself in it.
        if top == "elasticdl":
            return False
        path, below = self._resolve(top)
        # As in Python, a mere directory gives way to a module.
        owned = path is not None or (below is not None and not usercode.module_exists(top))
        if owned:
            self._packages.add(top)
        return owned

    def _import_statement(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """What an `import` statement in a zoo file calls; the contract of `__import__`."""
        absolute = name
        if level and globals and globals.get("__package__"):
            absolute = importlib.util.resolve_name("." * level + name, globals["__package__"])
        elif level:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        top = absolute.partition(".")[0]
        with self._lock:
            if not self._owns(top):
                return builtins.__import__(name, globals, locals, fromlist or (), level)
            module = self._import(absolute)
            if not fromlist:
                return self._import(top)
            wanted = list(fromlist)
            if "*" in wanted:
                wanted = [*wanted, *getattr(module, "__all__", ())]
            for item in wanted:
                inside = f"{absolute}.{item}"
                if item != "*" and not hasattr(module, item) and any(self._resolve(inside)):
                    self._import(inside)
            return module

    def _import(self, name: str) -> ModuleType:
        parent, _, last = name.rpartition(".")
        above = self._import(parent) if parent else None
        path, below = self._resolve(name)
        if path is None and below is None:
            raise ModuleNotFoundError(f"No module named {name!r} in the zoo", name=name)
        module = self._module(name, path, below)
        if above is not None and not hasattr(above, last):
            setattr(above, last, module)
        return module

    def _module(self, name: str, path: str | None, below: list[str] | None) -> ModuleType:
        key = path or (below or [""])[0]
        if key in self._modules:
            return self._modules[key]
        loader = _Loader(name, path) if path else None
        spec = importlib.machinery.ModuleSpec(name, loader, origin=path, loader_state=_ZOO)
        spec.has_location = path is not None
        spec.submodule_search_locations = below
        module = importlib.util.module_from_spec(spec)
        self._modules[key] = module
        visible = _is_free(name)
        before = sys.modules.get(name)
        if visible:
            # Under their names where nobody else has them: for pickle, dataclasses, Keras.
            sys.modules[name] = module
        if loader is not None:
            module.__dict__["__builtins__"] = self._builtins
            try:
                loader.exec_module(module)
            except BaseException:
                del self._modules[key]
                if visible:
                    del sys.modules[name]
                    if before is not None:
                        sys.modules[name] = before
                raise
        return module


def _is_free(name: str) -> bool:
    """Whether a zoo's module may stand in `sys.modules`: nobody else's has that name."""
    top = name.partition(".")[0]
    if top in sys.modules:
        spec = getattr(sys.modules[top], "__spec__", None)
        return getattr(spec, "loader_state", None) is _ZOO
    return top not in sys.stdlib_module_names and not usercode.module_exists(top)
