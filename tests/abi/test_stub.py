"""The type stubs of the C modules say what the modules have: nothing missing, nothing extra."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from xenpv.abi import _kernel, stub
from xenpv.bench import _limit

ROOT = Path(__file__).parents[2]
STUBS = {
    "xenpv.abi._kernel": (_kernel, ["xenpv/abi/kernel/kernel.h"]),
    "xenpv.bench._limit": (_limit, ["xenpv/bench/limit.h", "xenpv/bench/client.h"]),
}
IN_STRUCTS = ("_Domain", "_Machine", "_Ring", "_Evtchn", "_Upcall", "_DirtyLog")


def path(name):
    return ROOT / f"{name.replace('.', '/')}.pyi"


def declared(name):
    """{name: its node} of class _Lib in a stub."""
    tree = ast.parse(path(name).read_text())
    (lib,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "_Lib"]
    found = {}
    for node in lib.body:
        key = node.name if isinstance(node, ast.FunctionDef) else node.target.id
        assert key not in found, f"{key} stands there twice"
        found[key] = node
    return found


@pytest.mark.parametrize("name", STUBS)
def test_the_stub_has_every_name_and_no_other(name):
    module, _ = STUBS[name]
    assert list(declared(name)) == sorted(dir(module.lib))


@pytest.mark.parametrize("name", STUBS)
def test_constants_have_the_modules_values(name):
    module, _ = STUBS[name]
    told = {
        key: ast.literal_eval(node.value)
        for key, node in declared(name).items()
        if isinstance(node, ast.AnnAssign) and node.value is not None
    }
    values = {key: getattr(module.lib, key) for key in dir(module.lib)}
    assert told == {key: value for key, value in values.items() if isinstance(value, int)}


def expected(ffi, of):
    """The static type of a C type, by its text."""
    if of.cname == "void":
        return {"None"}
    if of.kind == "primitive":
        return {"float"} if of.cname == "double" else {"int"}
    if of.cname in {"struct domain *", "struct ring *"}:
        return {f"_{of.cname.split()[1].capitalize()}"}
    return {"Any", *IN_STRUCTS, "_Limit"}


@pytest.mark.parametrize("name", STUBS)
def test_functions_take_and_give_what_the_modules_do(name):
    module, _ = STUBS[name]
    functions = {
        key: node for key, node in declared(name).items() if isinstance(node, ast.FunctionDef)
    }
    assert functions
    for key, node in functions.items():
        of = module.ffi.typeof(getattr(module.lib, key))
        assert not node.args.args, f"{key}: cffi takes arguments by place only"
        told = [ast.unparse(one.annotation) for one in node.args.posonlyargs[1:]]
        assert len(told) == len(of.args), key
        for one, arg in zip(told, of.args, strict=True):
            assert one in expected(module.ffi, arg), f"{key}: {one} for {arg.cname}"
        assert ast.unparse(node.returns) in expected(module.ffi, of.result), key
    # And what has no signature is data, or a function of Python that C calls.
    rest = set(dir(module.lib)) - set(functions)
    assert {key for key in rest if not isinstance(getattr(module.lib, key), int)} == (
        {"abi_index", "kernel_hook"} if name == "xenpv.abi._kernel" else set()
    )


@pytest.mark.parametrize("name", STUBS)
def test_ffi_has_all_that_the_stub_says(name):
    module, _ = STUBS[name]
    tree = ast.parse(path(name).read_text())
    (ffi,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "_FFI"]
    for node in ffi.body:
        key = node.name if isinstance(node, ast.FunctionDef) else node.target.id
        assert hasattr(module.ffi, key), key


@pytest.mark.parametrize("name", STUBS)
def test_the_stub_is_what_make_stubs_writes(name):
    _, headers = STUBS[name]
    texts = [(ROOT / header).read_text() for header in headers]
    assert path(name).read_text() == stub.stub(name, *texts), "run `make stubs`"


def test_make_stubs_knows_the_same_modules_and_headers():
    makefile = (ROOT / "Makefile").read_text()
    for name, (_, headers) in STUBS.items():
        assert f"-m xenpv.abi.stub {name} {' '.join(headers)} >" in makefile


def test_the_command_writes_a_stub(capsys):
    header = str(ROOT / "xenpv/bench/limit.h")
    assert stub.main(["xenpv.bench._limit", header], sys.stdout.write) == 0
    text = capsys.readouterr().out
    assert "    def limit_revoke(self, limit: _Limit, page: int, /) -> int: ...\n" in text
    # Without its header a function's arguments have numbers.
    assert "    def store_client_run(\n        self, arg0: Any, arg1: int, arg2: Any," in text


WRONG = """\
from xenpv.abi._kernel import lib

def f(domain: "object") -> str:
    lib.ring_attach(lib.machine_new(b"", 1), [0], 1, 12, 12)
    lib.machine_new(b"")
    lib.no_such_function()
    return lib.P2M_RAM
"""


def test_mypy_finds_what_the_stub_forbids(tmp_path):
    source = tmp_path / "wrong.py"
    source.write_text(WRONG)
    command = [
        sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--follow-imports=silent",
        "--no-error-summary", "--config-file=", str(source),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line.rpartition("[")[2] for line in done.stdout.splitlines() if ": error" in line]
    assert lines == ["arg-type]", "call-arg]", "attr-defined]", "return-value]"], done.stdout
