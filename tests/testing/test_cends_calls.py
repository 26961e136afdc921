"""Every call of xenpv_end.h from C, in this process and in one of its own: what each answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xenpv.errors import ConfigError
from xenpv.host.network import Frame
from xenpv.testing import (
    CEnd,
    UserEndError,
    load_end,
    user_blk_backend,
    user_blk_frontend,
    user_net_backend,
    user_net_frontend,
)
from xenpv.testing.ends import TransferError

FOLDER = Path(__file__).parent / "cends"
SOURCE = FOLDER / "calls.c"

# What a call gave: numbers of errno.h and grant_table.h.
SAID = (
    ("domid", 0),
    ("otherend_id", 1),
    ("map", 0),
    ("adjacent", 0x6162),  # the last byte of the one, the first of the other
    ("unmap", 0),
    ("map nothing", -3),  # GNTST_bad_gntref
    ("still nothing", 0),
    ("map all or none", -3),
    ("copy from", 0),
    ("copied", 0x7778),  # what it wrote itself
    ("copy past", -10),  # GNTST_bad_copy_arg
    ("copy of nothing", -3),
    ("copy to", 0),
    ("copy to from own", 0),
    ("two references", 1),
    ("end access", 0),
    ("end again", 0),
    ("read nothing", -2),  # ENOENT
    ("read", 5),
    ("read small", -7),  # E2BIG: no room for the NUL
    ("scanf", 2),
    ("sum", 46),
    ("scanf nothing", -2),
    ("gather", 1),
    ("write elsewhere", -22),  # EINVAL
    ("abort", 0),
    ("aborted", -2),
    ("outside", -2),
    ("commit", 0),
    ("kept", 1),
    ("conflict", -11),  # EAGAIN
    ("rm", 0),
    ("gone", -2),
    ("sectors", 128),
    ("writable", 1),
    ("image write", 0),
    ("image read", 0),
    ("same", 0),
    ("image past", -5),  # EIO
    ("image far", -22),
    ("flush", 0),
    ("bind nothing", -22),
    ("notify", 0),
    ("unbound", 1),
    ("after", 5_000_000),
    ("heard", 1),  # of equal events that wait xenstored keeps one (XSA-326)
    ("path heard", 0),
    ("unwatch", 0),
    ("masked", 0),  # the frontend's event waited
    ("events", 1),
)


def live(end: CEnd, found: dict[str, Any]) -> None:
    """A whole life of the driver: what it wrote, and what it did to the frontend's pages."""
    with user_blk_backend(end, connect=False) as world:
        guest, vbd = world.guest, world.vbd
        pfns = [guest.page() for _ in "ab"]
        guest.domain.write(pfns[0], 4095, b"a")
        guest.domain.write(pfns[1], 0, b"b")
        refs = [guest.grant(pfn) for pfn in pfns]
        vbd.write_key("pages", f"{refs[0]} {refs[1]}")
        world.run()
        vbd.attach()
        vbd.announce()
        vbd.notify()
        world.run()
        path = f"{vbd.backend_path}/said"
        found |= {name: guest.xs.read(f"{path}/{name}") for name in guest.xs.directory(path)}
        first, second = (guest.domain.read(pfn, 0, 4096) for pfn in pfns)
        found["written"] = first[8:10] + first[16:20] + first[4094:] + second[:2]
        found["notes"] = [one.text for one in world.platform.loop.trace.notes]
        found["paths"] = (vbd.backend_path, vbd.path)
        found["image"] = bytes(world.image.buffer[3 * 512 :][:7])
        assert guest.revoke(refs[0])
        assert vbd.events == 1


@pytest.mark.parametrize("isolate", [False, True], ids=["loaded", "process"])
def test_every_call_answers_as_its_header_says(isolate: bool) -> None:
    end = load_end(SOURCE, cflags=["-Wall", "-Wextra", "-Werror"], isolate=isolate)
    found: dict[str, Any] = {}
    with pytest.raises(
        UserEndError, match=rf"{SOURCE.name}:\d+ in connect: event channel port \d+"
    ):
        live(end, found)
    assert {name: found.get(name.replace(" ", "-")) for name, _ in SAID} == {
        name: str(value) for name, value in SAID
    }
    assert (found["nodename"], found["otherend"]) == found["paths"]
    assert found["written"] == b"tooooowxyz"
    assert found["image"] == b"sector\0"
    assert "calls.c says 7" in found["notes"]


@pytest.mark.parametrize("isolate", [False, True], ids=["loaded", "process"])
def test_a_block_frontend_in_c_serves_a_program(isolate: bool) -> None:
    with user_blk_frontend(load_end(FOLDER / "blkfront.c", isolate=isolate)) as world:
        data = bytes(range(256)) * 2 * 88  # 88 sectors: eleven pages
        world.app.write(8, data)
        assert world.app.read(8, 88) == data
        world.app.flush()
        reads = [world.app.start_read(8 + at, 3) for at in range(5)]
        world.run()
        assert [one.data for one in reads] == [data[at * 512 :][:1536] for at in range(5)]
        with pytest.raises(TransferError):
            world.app.read(0, 89)  # more than a request has pages for
    assert world.plug.guard.failed is None


@pytest.mark.parametrize("isolate", [False, True], ids=["loaded", "process"])
def test_network_drivers_in_c_get_and_give_frames(isolate: bool) -> None:
    end = load_end(FOLDER / "frames.c", isolate=isolate)
    with user_net_frontend(end, connect=False) as front:
        front.boot()
        front.app.send(b"abcdef")
        front.run()
        assert list(front.app.received) == [b"fedcba"]
    with user_net_backend(end, connect=False) as back:
        back.run()
        port = back.plugged[-1]._port
        back_again = bytes.fromhex("ffffffffffff 02aabbccddef 88b5") + bytes(46)
        frame = back_again[::-1]
        assert port is not None
        port.receive([Frame(frame)])
        back.run()
        assert back.bridge.frames[-1] == back_again


def test_two_ends_of_one_driver_share_its_memory_and_a_new_world_begins_anew() -> None:
    """`counter` is static: of one kernel's driver, and zero when that is loaded."""
    end = load_end(FOLDER / "misdeeds.c")
    for _ in range(3):
        with user_blk_backend(end, connect=False) as world:
            world.guest.xs.write(f"{world.vbd.backend_path}/misdeed", "count")
            world.connect()
            assert world.vbd.backend_key("counter") == "1"


def test_an_end_that_somebody_still_knows_does_not_keep_what_the_next_world_finds() -> None:
    """A failed run keeps its exception, and with it every end that its frames speak of."""
    end = load_end(FOLDER / "misdeeds.c")
    kept = []
    for _ in range(3):
        world = user_blk_backend(end, connect=False)
        world.guest.xs.write(f"{world.vbd.backend_path}/misdeed", "count")
        world.connect()
        assert world.vbd.backend_key("counter") == "1"
        kept.append((world, world.plugged, world.driver))
        world.close()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("int x = ;", r"bad.c:1:9: expected expression"),
        ("#include <nowhere.h>", r"bad.c:1:10: nowhere.h: No such file"),
        ("int x;", "undefined: xenpv_driver"),
    ],
)
def test_what_does_not_build_is_told_with_its_place(tmp_path: Path, text: str, error: str) -> None:
    source = tmp_path / "bad.c"
    source.write_text(text + "\n")
    with (
        pytest.raises(ConfigError, match=error),
        user_blk_backend(load_end(source), connect=False) as world,
    ):
        world.run()


def test_sources_and_compilers_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.c: no such C source"):
        load_end(tmp_path / "none.c")
    with pytest.raises(ConfigError, match="at least one C source"):
        load_end()
    with pytest.raises(ConfigError, match="no-such-cc: No such file"):
        load_end(SOURCE, compiler="no-such-cc")


def test_a_machine_without_gcc_is_told_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^there is no gcc, .*: apt-get install gcc$"):
        load_end(SOURCE, cflags=["-DNEVER_BUILT_BEFORE"])


def test_sources_of_several_files_and_headers(tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "mine.h").write_text("int mine(void);\n")
    (tmp_path / "mine.c").write_text('#include "mine.h"\nint mine(void) { return VALUE; }\n')
    (tmp_path / "driver.c").write_text(
        '#include "mine.h"\n#include "xenpv_end.h"\n'
        "static int probe(xenpv_end *end) { return xenpv_switch_state(end, mine()); }\n"
        "const struct xenpv_driver xenpv_driver = { .probe = probe };\n"
    )
    end = load_end(
        tmp_path / "mine.c", tmp_path / "driver.c",
        include=[tmp_path / "include"], cflags=["-DVALUE=2"],
    )  # fmt: skip
    with user_blk_backend(end, connect=False) as world:
        world.run()
        assert world.vbd.backend_key("state") == "2"
