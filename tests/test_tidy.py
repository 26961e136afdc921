"""Rules of the house that a reader would otherwise have to check by hand."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "xenpv").rglob("*.py"))
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 600

# The model knows no other time, no other chance and no other thread than its loop's.
BANNED_IN_MODEL = {
    "time.time", "time.monotonic", "time.perf_counter", "time.sleep",
    "datetime.now", "datetime.utcnow", "uuid.uuid4", "uuid.uuid1",
    "os.urandom", "random.random", "random.randrange", "random.choice", "random.shuffle",
    "random.randint", "random.getrandbits", "random.seed",
}  # fmt: skip
BANNED_MODULES = {"threading", "asyncio", "multiprocessing", "secrets", "concurrent"}
MODEL = ("abi", "xen", "store", "bus", "vif", "net", "vbd", "iface", "back", "host")


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _in_model(path: Path) -> bool:
    top = path.relative_to(ROOT / "xenpv").parts[0]
    return top in MODEL or top == "platform.py"


@pytest.mark.parametrize("path", SOURCES, ids=_ids)
def test_functions_fit_a_screen_and_modules_have_one_noun(path: Path) -> None:
    tree = _tree(path)
    long = [
        f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert not long, long
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MODULE_LINES_MAX


@pytest.mark.parametrize("path", [p for p in SOURCES if _in_model(p)], ids=_ids)
def test_model_has_no_clock_chance_or_thread_of_its_own(path: Path) -> None:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used = f"{node.value.id}.{node.attr}"
            assert used not in BANNED_IN_MODEL, f"line {node.lineno}: {used}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
            )
            for name in names:
                assert name.split(".")[0] not in BANNED_MODULES, f"line {node.lineno}: {name}"


@pytest.mark.parametrize("path", [p for p in SOURCES if _in_model(p)], ids=_ids)
def test_no_set_is_iterated_in_the_model(path: Path) -> None:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.For | ast.comprehension):
            assert not isinstance(node.iter, ast.Set | ast.SetComp), ast.dump(node.iter)
            if isinstance(node.iter, ast.Call) and isinstance(node.iter.func, ast.Name):
                assert node.iter.func.id not in ("set", "frozenset"), ast.dump(node.iter)


@pytest.mark.parametrize("path", SOURCES, ids=_ids)
def test_ignores_carry_their_rule_and_reason(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if "# type: ignore" in line:
            assert "ignore[" in line and line.split("ignore[", 1)[1].count("#"), f"line {number}"
        if "# noqa" in line:
            assert "noqa: " in line and " - " in line, f"line {number}"


def test_no_module_is_named_for_everything() -> None:
    vague = {"utils", "helpers", "manager", "managers", "common", "misc", "types", "constants"}
    assert not [path for path in SOURCES if path.stem in vague]
