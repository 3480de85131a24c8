"""Parts of recipes from other packages: methods, networks, data sets, augmentations, optimizers, loggers.

A module has them in dicts of the same names as ours, such as METHODS = {"poly1": Poly1}. A recipe names the module
under `uses`; what an installed package announces as an entry point of the group `lsdali.parts` is there without that.
Either way, the module's code runs.
"""

import argparse
import hashlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from lsdali.errors import UserError, first_line

GROUP = "lsdali.parts"
DICTS = (
    *("METHODS", "MODELS", "DATASETS", "AUGMENTATIONS", "EFFECTS"),
    *("OPTIMIZERS", "TORCH", "LOGGERS", "FEATURE_LOSSES"),
)
"""The dicts that a module may have. Each is opened by the file that has ours, perhaps after the module is in use."""
FORBIDDEN = "LSDALI_NO_USES"
"""The environment variable that `--no-uses` sets, for this process and those that it starts."""

Check = Callable[[str, Any], str | None]
"""(name, entry) -> what an entry should be instead, None if it is right."""


@dataclass(frozen=True, slots=True)
class Registry:
    """A dict that recipes read names from, and what may be added to it."""

    entries: dict[str, Any]
    what: str
    check: Check
    beside: str | None = None  # a second dict that a module must have with the same names


@dataclass(frozen=True, slots=True)
class Part:
    """A module in use."""

    name: str
    version: str | None  # of its package, where one is known
    digest: str  # SHA-256 of the Python files of its package
    adds: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False)  # names by registry


OPEN_REGISTRIES: dict[str, Registry] = {}
USED: dict[str, Part] = {}
_modules: dict[str, ModuleType] = {}
_listeners: list[Callable[[], None]] = []
_announced: list[str] = []  # by entry points; looked up once


def opened(name: str, entries: dict[str, Any], what: str, check: Check, beside: str | None = None) -> None:
    """Let modules add to a registry; they have its entries in a dict of this name."""
    OPEN_REGISTRIES[name] = Registry(entries, what, check, beside)
    for part in _modules:
        _add(part, name)


def from_files(package: str, files: Iterable[str], name: str) -> dict[str, Any]:
    """Return the entries of the dicts called `name` in some files of a package, in their order."""
    modules = (import_module(f"{package}.{file}") for file in files)
    return {key: entry for module in modules for key, entry in vars(module)[name].items()}


def on_growth(listener: Callable[[], None]) -> None:
    """Have a function called whenever registries have grown."""
    _listeners.append(listener)


def use(names: Iterable[str]) -> None:
    """Import modules and add what they have to our registries; those in use already cost nothing.

    Raises UserError for a module that is not there, fails, has none of our dicts, or has an entry that is not what it
    should be, or a name that is taken; also if `--no-uses` forbids it.
    """
    new = [name for name in dict.fromkeys(names) if name not in USED]
    if new and forbidden():
        raise UserError(f"this needs code from {', '.join(new)}, which --no-uses refuses")
    for name in new:
        _use(name, _imported(name))
    if new:
        _grown()


def use_installed() -> None:
    """Use what installed packages announce as entry points of the group `lsdali.parts`, unless `--no-uses` forbids it.

    Raises UserError that names the package if its module cannot be used.
    """
    if _announced or forbidden():
        return
    _announced.append(GROUP)
    for point in metadata.entry_points(group=GROUP):
        try:
            use([point.value])
        except UserError as error:
            package = "?" if point.dist is None else point.dist.name
            raise UserError(f"the installed package {package} cannot be used ({error}): mend or remove it") from error


def add(registry: str, name: str, entry: Any) -> None:
    """Add one object of this process to a registry, in place of an earlier one that was added so.

    It is known by the module that defines it. Raises UserError as `use` does.
    """
    part = str(getattr(entry, "__module__", "__main__"))
    if OPEN_REGISTRIES[registry].entries.get(name) is entry:
        return
    mine = USED[part].adds.get(registry, ()) if part in USED else ()
    if name in mine:
        del OPEN_REGISTRIES[registry].entries[name]
    _put(part, registry, {name: entry})
    USED.setdefault(part, _described(part, sys.modules[part])).adds[registry] = (*dict.fromkeys((*mine, name)),)
    _grown()


def forbid() -> None:
    """Refuse foreign code from now on, also in processes that this one starts."""
    os.environ[FORBIDDEN] = "1"


def add_refusal(parser: argparse.ArgumentParser) -> None:
    """Give a command the flag `--no-uses`."""
    text = "refuse recipes and checkpoints that bring code of other packages (`uses`), and leave out installed parts"
    parser.add_argument("--no-uses", action=_Forbid, nargs=0, default=False, help=text)


class _Forbid(argparse.Action):
    def __call__(self, *_: Any) -> None:
        forbid()


def forbidden() -> bool:
    """Return whether foreign code is refused."""
    return os.environ.get(FORBIDDEN, "") not in ("", "0")


def in_use(named: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return name, version and digest of the modules that have one of these names, or are named themselves.

    `named` are the names of a recipe's parts and what it says under `uses`.
    """
    wanted = set(named)
    chosen = [part for part in USED.values() if part.name in wanted or wanted & set(sum(part.adds.values(), ()))]
    return [{key: value for key, value in asdict(part).items() if key != "adds"} for part in chosen]


def changes(then: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each module that differs between two answers of `in_use`."""
    before = {part["name"]: part for part in then}
    out = []
    for part in now:
        old = before.get(part["name"])
        if old is not None and old["digest"] != part["digest"]:
            what = f"version {old['version']} -> {part['version']}" if old["version"] != part["version"] else "files"
            out.append(f"{part['name']} has changed since the run was saved ({what}); it goes on with what is there")
    return out


def owner(registry: str, name: str) -> str | None:
    """Return the module in use that an entry comes from; None for our own."""
    return next((part.name for part in USED.values() if name in part.adds.get(registry, ())), None)


def tagged(base: type, config_of: Callable[[Any], Any]) -> Check:
    """Return a check for classes whose Config has their name: `base` is what they derive from."""

    def check(name: str, entry: Any) -> str | None:
        if not (isinstance(entry, type) and issubclass(entry, base)):
            return f"a class derived from {base.__module__}.{base.__name__}"
        kind = config_of(entry)
        if get_args(kind.model_fields["name"].annotation) != (name,):
            return f'a class whose {kind.__name__} has `name: Literal["{name}"] = "{name}"`'
        return None

    return check


def callable_entry(name: str, entry: Any) -> str | None:
    """Check for what is called."""
    return None if callable(entry) else "a function"


# ---- inside


def _imported(name: str) -> ModuleType:
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # as `python -m lsdali.train` has it; `lsdali train` has not
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"there is no module {name} to import: install its package, or put the folder it lies in on PYTHONPATH"
            ) from None
        raise _failed(name, error) from error
    except UserError:
        raise
    except Exception as error:
        raise _failed(name, error) from error


def _failed(name: str, error: Exception) -> UserError:
    """Return what to say of a module that cannot be imported: its own line that failed, and why."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if len(frames) > 1 else ""
    return UserError(f"{name} cannot be imported: {type(error).__name__}: {first_line(error)}{where}")


def _use(name: str, module: ModuleType) -> None:
    if not any(isinstance(vars(module).get(registry), dict) for registry in DICTS):
        raise UserError(f"{name} has nothing for a recipe: it needs one of the dicts {', '.join(DICTS)}")
    _modules[name], USED[name] = module, _described(name, module)
    try:
        for registry in OPEN_REGISTRIES:
            _add(name, registry)
    except UserError:
        del _modules[name], USED[name]
        raise


def _add(part: str, registry: str) -> None:
    """Add what a module has for one registry."""
    module = _modules[part]
    mine = vars(module).get(registry)
    if not isinstance(mine, dict) or mine is OPEN_REGISTRIES[registry].entries:
        return
    beside = OPEN_REGISTRIES[registry].beside
    if beside is not None and (lacking := [name for name in mine if name not in vars(module).get(beside, {})]):
        raise UserError(f"{part} has {registry}['{lacking[0]}'] without {beside}['{lacking[0]}'], which belongs to it")
    _put(part, registry, mine)
    USED[part].adds[registry] = tuple(mine)


def _put(part: str, registry: str, new: Mapping[str, Any]) -> None:
    target = OPEN_REGISTRIES[registry]
    for name, entry in new.items():
        if name in target.entries and target.entries[name] is not entry:
            whose = owner(registry, name) or "lsdali"
            raise UserError(f"{part} has a {target.what} '{name}', a name that {whose} has taken: give it another one")
        wrong = target.check(name, entry)
        if wrong is not None:
            raise UserError(f"{part}.{registry}['{name}'] is no {target.what} of recipes: it must be {wrong}")
    target.entries.update(new)


def _grown() -> None:
    for listener in _listeners:
        listener()


def _described(name: str, module: ModuleType) -> Part:
    top = name.partition(".")[0]
    version = getattr(sys.modules.get(top), "__version__", None)
    with suppress(metadata.PackageNotFoundError, ValueError):
        version = metadata.version(top)
    return Part(name, None if version is None else str(version), files_digest(module))


def files_digest(module: ModuleType) -> str:
    """Return the SHA-256 of the names and contents of all Python files of a module's package; of its own file if it is
    in none, and of nothing if it has no file, as in a notebook."""
    top = sys.modules.get(module.__name__.partition(".")[0], module)
    folders = [Path(folder) for folder in getattr(top, "__path__", ())]
    files = {str(path.relative_to(folder)): path for folder in folders for path in folder.rglob("*.py")}
    if not folders and getattr(module, "__file__", None):
        own = Path(str(module.__file__))
        files = {own.name: own}
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
