"""Functions and classes of a user by name, so that a file can say them and find them again."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from xenpv.errors import ConfigError, LocalProtocolError

if TYPE_CHECKING:
    from xenpv.testing.ringkit.protocol import RingProtocol
    from xenpv.testing.ringkit.suite import RingSuite


def name_of(thing: Any, *, must_import: bool = False, what: str = "a scenario") -> str:
    """`module:function`, or `mine.c -DFLAG` of a driver in C. LocalProtocolError if it must be
    found again and cannot.
    """
    text = getattr(thing, "text", "")
    if isinstance(text, str) and is_source(text):
        return text
    module = getattr(thing, "__module__", "")
    name = getattr(thing, "__qualname__", repr(thing))
    if must_import and (not name.isidentifier() or not module):
        raise LocalProtocolError(
            f"{module}:{name} cannot be replayed: {what} in a file is a function of a module"
        )
    return f"{module}:{name}"


def is_source(text: str) -> bool:
    """Whether it names a C source, with flags of the compiler behind it."""
    return text.partition(" ")[0].endswith(".c")


def file_of(thing: Any) -> str:
    """The file that it is in, relative to the working directory where it is below that. Empty for
    what is xenpv's own: where that is installed is nobody's business but this machine's.
    """
    if getattr(thing, "__module__", "").startswith("xenpv."):
        return ""
    code = getattr(thing, "__code__", None)
    if code is not None:
        return shown(code.co_filename)
    module = sys.modules.get(getattr(thing, "__module__", ""))
    found = getattr(module, "__file__", None)
    return "" if found is None else shown(found)


def find(name: str, file: str, *, what: str = "scenario") -> Any:
    """The function or class. ConfigError if there is none, or it cannot be imported."""
    if is_source(name):
        from xenpv.testing.cends import load_end

        source, *flags = name.split()
        return load_end(source, cflags=flags)
    module_name, _, function = name.partition(":")
    try:
        module = _module(module_name, file)
    except (Exception, SystemExit) as error:  # a module may end its process, but not ours
        raise ConfigError(
            f"{what} {name!r}: importing it: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, function, None) if module is not None else None
    if not callable(found):
        raise ConfigError(f"unknown {what} {name!r}: no such function to import")
    return found


def find_driver(text: str) -> Any:
    """What `module:Class`, `file.py:Class` or `mine.c` names, for the command line. ConfigError."""
    if is_source(text):
        return find(text, "", what="driver")
    module, _, name = text.rpartition(":")
    if not module or not name:
        raise ConfigError(f"driver {text!r}: expected module:Class, file.py:Class or file.c")
    if not module.endswith(".py"):
        return find(text, "", what="driver")
    if not Path(module).is_file():
        raise ConfigError("no such file", file=module)
    path = Path(module).resolve()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    return find(f"{path.stem}:{name}", str(path), what="driver")


def find_suite(text: str, file: str = "") -> RingSuite:
    """The RingSuite of `module:NAME` or `file.py:NAME`. ConfigError: there is none."""
    from xenpv.testing.ringkit.suite import RingSuite

    found = _variable(text, file, "suite")
    if not isinstance(found, RingSuite):
        raise ConfigError(f"suite {text!r}: no such RingSuite to import")
    return found


def find_protocol(text: str) -> RingProtocol:
    """The RingProtocol of `module:NAME` or `file.py:NAME`. ConfigError: there is none."""
    from xenpv.testing.ringkit.protocol import RingProtocol

    found = _variable(text, "", "protocol")
    if not isinstance(found, RingProtocol):
        raise ConfigError(f"protocol {text!r}: no such RingProtocol to import")
    return found


def _variable(text: str, file: str, what: str) -> Any:
    module, _, name = text.rpartition(":")
    if module.endswith(".py"):
        if not Path(module).is_file():
            raise ConfigError("no such file", file=module)
        path = Path(module).resolve()
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        module, file = path.stem, str(path)
    try:
        return getattr(_module(module, file), name, None)
    except Exception as error:
        raise ConfigError(
            f"{what} {text!r}: importing it: {type(error).__name__}: {error}"
        ) from error


def _module(name: str, file: str) -> ModuleType | None:
    """By its name where that leads to it, else from its file."""
    if name and name != "__main__":
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            pass
    spec = importlib.util.spec_from_file_location("xenpv_replayed", file) if file else None
    if spec is None or spec.loader is None or not Path(file).is_file():
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(path: str) -> str:
    """A path, relative to the working directory where it is below that."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return path
