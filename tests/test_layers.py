"""Which package may import which: the architecture's table, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "xenpv"

# package: the modules of xenpv it may import, besides itself and xenpv.errors
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "errors": (),
    "abi": (),
    "xen": ("abi",),
    "store": ("xen.domain", "abi"),
    "bus": ("xen.domain", "abi"),
    "vif": ("bus", "abi"),
    "vbd": ("bus", "abi"),
    "net": ("vif.interface", "abi"),
    "iface": ("bus", "abi"),
    "host": ("store", "abi"),
    "back": ("host", "store.connection", "xen.domain", "abi"),
    # What sees both ends: the composition root, its guests, and what moves a whole guest.
    **dict.fromkeys(
        (
            "platform",
            "guest",
            "serving",
            "dumping",
            "driverdomain",
            "migration",
            "taps",
            "guesttap",
            "framelists",
        ),
        (
            "abi",
            "xen",
            "store",
            "bus",
            "vif",
            "net",
            "vbd",
            "iface",
            "back",
            "host",
            "platform",
            "guest",
            "serving",
            "dumping",
            "driverdomain",
            "migration",
            "taps",
            "guesttap",
            "framelists",
            "view.tape",
        ),
    ),
    # What looks at a platform; of the model the composition root alone takes a tape.
    "view": (
        "abi",
        "xen",
        "store",
        "bus",
        "vif",
        "net",
        "vbd",
        "iface",
        "back",
        "host",
        "platform",
        "guest",
        "migration",
    ),
    "testing": ("",),
    "bench": ("",),
    "cli": ("",),
}
# What stands behind a Domain: every room that may import xen.domain may name these too.
DOMAIN_MODULES = (
    "xen.domain", "xen.domctl", "xen.loop", "xen.trace", "xen.upcall", "xen.evtchn", "xen.gnttab",
)  # fmt: skip
# The toolstack creates domains, so of `host` its parts alone see them.
TOOLSTACK = (
    "host.toolstack", "host.libxl", "host.creation", "host.hotplug", "host.domsuspend",
    "host.monitor", "host.listing", "host.coredump", "host.runtime", "host.domid", "host.ddomain",
    "host.aodevice", "host.xswatch",
)  # fmt: skip
# Rooms that live in top-level modules of their own.
CLI_MODULES = ("cli", "job", "report", "__main__", "__init__")
# Only these import the test kit, and lazily.
TESTING_USERS = ("cli", "bench")


def _modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "build.py")


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def _room(name: str) -> str:
    top = name.split(".", maxsplit=1)[0]
    return "cli" if top in CLI_MODULES and "." not in name else top


def _imports(path: Path) -> list[tuple[int, str, bool]]:
    """(line, module below xenpv, at module level) of every import of our own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
        found += [
            (node.lineno, name.removeprefix("xenpv").removeprefix("."), id(node) in top)
            for name in names
            if name.split(".")[0] == "xenpv"
        ]
    return found


def _allowed(room: str, name: str, imported: str) -> bool:
    allowed = MAY_IMPORT[room]
    if "xen.domain" in allowed or name in TOOLSTACK or room in ("vif", "vbd", "iface"):
        allowed += DOMAIN_MODULES
    if imported.split(".", maxsplit=1)[0] in (room, "errors"):
        return True
    return any(
        not permitted or imported == permitted or imported.startswith(permitted + ".")
        for permitted in allowed
    )


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_module_imports_only_what_its_room_may(path: Path) -> None:
    name = _name(path)
    room = _room(name)
    assert room in MAY_IMPORT, f"{name} is in no room"
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {room} may not import xenpv.{imported}"
        for line, imported, _ in _imports(path)
        if not _allowed(room, name, imported)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_the_test_kit_is_imported_lazily_and_by_few(path: Path) -> None:
    room = _room(_name(path))
    for line, imported, at_module_level in _imports(path):
        if imported.split(".")[0] == "testing" and room != "testing":
            assert room in TESTING_USERS, f"{path}:{line}"
            assert room == "bench" or not at_module_level, f"{path}:{line}: import it where used"


def test_guest_and_backend_share_no_module_but_the_declarations() -> None:
    def own(rooms: tuple[str, ...]) -> set[str]:
        seen = set()
        for path in _modules():
            if _room(_name(path)) in rooms:
                seen |= {".".join(imported.split(".")[:2]) for _, imported, _ in _imports(path)}
        return seen

    shared = own(("bus", "vif", "net", "vbd", "iface")) & own(("back",))
    rooms = {module.split(".")[0] for module in shared}
    assert rooms <= {"abi", "errors", "xen"}, sorted(shared)
