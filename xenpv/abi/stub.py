"""`python -m xenpv.abi.stub MODULE HEADER...`: the type stub of a built cffi module, on stdout.

What a name is, a constant or a function of so many arguments, is asked of the module; names of
arguments come from the headers that cffi read. A pointer to a struct that only C knows has a
type of its own, so that mypy tells a domain from a ring. Other pointers and cdata are Any:
their fields have no static type. `make stubs` writes both stubs of this package.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from typing import Any, Final

WIDTH: Final = 96  # of a line inside a class
_COMMENT: Final = re.compile(r"/\*.*?\*/", re.DOTALL)
_PROTOTYPE: Final = re.compile(r"^[\w ]+?\**(\w+)\(([^()]*)\);", re.MULTILINE)
_ARGUMENT: Final = re.compile(r"(\w+)(\s*\*+\s*|\s+)?(\w+)?$")
_INTEGER: Final = re.compile(r"u?int\d+_t|(?:unsigned )?(?:char|short|int|long)|size_t")

# cffi's compiled FFI, as far as it is of use; what it makes has no static type.
FFI: Final = """\
class _FFI:
    NULL: Any
    CData: type
    CType: type
    error: type[Exception]
    def new(self, cdecl: str | Any, init: Any = ...) -> Any: ...
    def new_allocator(
        self,
        alloc: Callable[[int], Any] | None = ...,
        free: Callable[[Any], None] | None = ...,
        should_clear_after_alloc: bool = ...,
    ) -> Callable[..., Any]: ...
    def cast(self, cdecl: str | Any, value: Any) -> Any: ...
    def from_buffer(
        self, cdecl: str | Any, python_buffer: Any = ..., require_writable: bool = ...
    ) -> Any: ...
    def buffer(self, cdata: Any, size: int = ...) -> Any: ...
    def memmove(self, dest: Any, src: Any, n: int) -> None: ...
    def string(self, cdata: Any, maxlen: int = ...) -> bytes: ...
    def unpack(self, cdata: Any, length: int) -> Any: ...
    def gc(self, cdata: Any, destructor: Callable[[Any], Any] | None, size: int = ...) -> Any: ...
    def release(self, cdata: Any) -> None: ...
    def new_handle(self, python_object: Any) -> Any: ...
    def from_handle(self, cdata: Any) -> Any: ...
    def addressof(self, cdata: Any, *fields_or_indexes: str | int) -> Any: ...
    def typeof(self, cdecl: str | Any) -> Any: ...
    def sizeof(self, cdecl: str | Any) -> int: ...
    def alignof(self, cdecl: str | Any) -> int: ...
    def offsetof(self, cdecl: str | Any, *fields_or_indexes: str | int) -> int: ...
    def getctype(self, cdecl: str | Any, replace_with: str = ...) -> str: ...
    def list_types(self) -> tuple[list[str], list[str], list[str]]: ...
    def integer_const(self, name: str) -> int: ...
    def callback(
        self, cdecl: str | Any, python_callable: Any = ..., error: Any = ..., onerror: Any = ...
    ) -> Any: ...
    def def_extern(
        self, name: str = ..., error: Any = ..., onerror: Any = ...
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]: ...
"""


def stub(module: str, *headers: str) -> str:
    """The text of MODULE's stub; `headers` are the texts whose prototypes name arguments."""
    built = import_module(module)
    prototypes = {
        name: [_argument(one) for one in arguments.split(",")]
        for text in headers
        for name, arguments in _PROTOTYPE.findall(_COMMENT.sub("", text))
    }
    body = [_member(built, name, prototypes.get(name, [])) for name in sorted(dir(built.lib))]
    opaque = sorted({one for text in body for one in re.findall(r"[ \[](_[A-Z]\w+)", text)})
    parts = [
        f"# Written by `python -m xenpv.abi.stub {module}` (make stubs); not edited by hand.",
        "from collections.abc import Callable\nfrom typing import Any, Final\n",
        *(f"class {name}: ...  # of a pointer that only C looks behind" for name in opaque),
        "",
        FFI,
        "class _Lib:",
        *(f"    {line}" for text in body for line in text.splitlines()),
        "",
        "ffi: _FFI\nlib: _Lib\n",
    ]
    return "\n".join(parts)


def _argument(declared: str) -> str:
    """The name of an argument, or of the struct that an unnamed pointer leads to; else empty."""
    match = _ARGUMENT.search(declared.strip())
    assert match, declared
    of, pointer, name = match.groups()
    if name:
        return str(name)
    return str(of) if pointer and pointer.strip() and of != "void" else ""


def _member(built: Any, name: str, names: list[str]) -> str:
    value = getattr(built.lib, name)
    if isinstance(value, int):
        return f"{name}: Final = {value}"
    if not callable(value):
        return f"{name}: Any"
    of = built.ffi.typeof(value)
    if isinstance(value, built.ffi.CData):  # a function of Python that C calls
        return f"{name}: Any"
    named = zip(_unlike(names, len(of.args)), of.args, strict=True)
    arguments = ["self", *(f"{one}: {_static(built.ffi, arg)}" for one, arg in named), "/"]
    end = f") -> {_static(built.ffi, of.result)}: ..."
    line = f"def {name}({', '.join(arguments)}{end}"
    if len(line) <= WIDTH:
        return line
    inner = ", ".join(arguments)
    if len(inner) > WIDTH - 4:
        inner = ",\n    ".join(arguments) + ","
    return f"def {name}(\n    {inner}\n{end}"


def _unlike(names: list[str], count: int) -> Iterator[str]:
    """A name for each argument, no two alike."""
    seen = {"self"}
    for at in range(count):
        name = names[at] if at < len(names) and names[at] else f"arg{at}"
        if name in seen:
            name = f"{name}{at}"
        seen.add(name)
        yield f"{name}_" if iskeyword(name) else name


def _static(ffi: Any, of: Any) -> str:
    if of.kind == "void":
        return "None"
    if of.kind == "primitive":
        return "int" if _INTEGER.fullmatch(of.cname) else "float"
    if of.kind == "pointer" and of.item.kind == "struct" and _is_opaque(ffi, of.item):
        words = str(of.item.cname).removeprefix("struct ").split("_")
        return "_" + "".join(word.capitalize() for word in words)
    return "Any"


def _is_opaque(ffi: Any, of: Any) -> bool:
    try:
        ffi.sizeof(of)
    except ffi.error:
        return True
    return False


def main(arguments: list[str], say: Callable[[str], object] = sys.stdout.write) -> int:
    """Write the stub of the first argument; the others are paths of headers."""
    module, *headers = arguments
    say(stub(module, *(Path(path).read_text() for path in headers)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
