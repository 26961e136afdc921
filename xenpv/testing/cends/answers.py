"""What is done for each call of xenpv_end.h: an End's own operations, results as C has them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from struct import pack, unpack
from typing import TYPE_CHECKING, Final

from xenpv.abi.xenbus import XenbusState
from xenpv.errors import GrantError, HypercallError, LocalProtocolError, StoreError
from xenpv.host.imageio import ImageError
from xenpv.testing.cends.wire import OP, Call

if TYPE_CHECKING:
    from xenpv.testing.cends.driver import CDriver

SECTOR: Final = 512
MAPS: Final = 1 << 32  # ids of maps begin here; those of own pages are pfns

Answer = int | tuple[int, bytes]


def alloc_pages(driver: CDriver, call: Call) -> Answer:
    count = call.args[0]
    pfn = driver.end.page(count)
    driver.pages[pfn] = count
    return pfn, driver.frames(range(pfn, pfn + count))


def free_pages(driver: CDriver, call: Call) -> Answer:
    pfn, count = call.args[:2]
    if pfn >= MAPS:
        driver.refuse("gives pages of the other end to xenpv_free_pages: they are unmapped")
    del driver.pages[pfn]
    driver.end.free(pfn, count)
    return 0


def grant_access(driver: CDriver, call: Call) -> Answer:
    pfn, index, readonly = call.args[:3]
    if pfn >= MAPS:
        driver.refuse("grants a page that it has mapped: it is the other end's")
    return driver.end.grant(pfn + index, readonly=bool(readonly))


def end_access(driver: CDriver, call: Call) -> Answer:
    return 0 if driver.end.revoke(call.args[0]) else -errno.EBUSY


def map_grants(driver: CDriver, call: Call) -> Answer:
    count, readonly = call.args[:2]
    pfns: list[int] = []
    try:
        for ref in unpack(f"={count}I", call.given):
            pfns.append(driver.end.map(ref, readonly=bool(readonly)))  # noqa: PERF401 - one may fail
    except (GrantError, HypercallError):
        for pfn in pfns:
            driver.end.unmap(pfn)
        raise
    driver.nr_maps += 1
    driver.maps[MAPS + driver.nr_maps] = pfns
    return MAPS + driver.nr_maps, driver.frames(pfns)


def unmap(driver: CDriver, call: Call) -> Answer:
    pfns = driver.maps.pop(call.args[0], None)
    if pfns is None:
        driver.refuse("gives its own pages to xenpv_unmap: they are freed")
    for pfn in pfns:
        driver.end.unmap(pfn)
    return 0


def copy_from(driver: CDriver, call: Call) -> Answer:
    ref, offset, size = call.args[:3]
    return 0, driver.end.copy_from(ref, offset, size)


def copy_to(driver: CDriver, call: Call) -> Answer:
    driver.end.copy_to(call.args[0], call.args[1], call.given)
    return 0


def bind(driver: CDriver, call: Call) -> Answer:
    return driver.end.bind_port(call.args[0], driver.handler(call.args[1], call.args[2]))


def alloc_unbound(driver: CDriver, call: Call) -> Answer:
    return driver.end.open_port(driver.handler(call.args[1], call.args[2]))


def notify(driver: CDriver, call: Call) -> Answer:
    driver.end.notify(call.args[0])
    return 0


def mask(driver: CDriver, call: Call) -> Answer:
    driver.end.mask(call.args[0])
    return 0


def unmask(driver: CDriver, call: Call) -> Answer:
    driver.end.unmask(call.args[0])
    return 0


def close(driver: CDriver, call: Call) -> Answer:
    driver.end.close_port(call.args[0])
    return 0


# the store


def read(driver: CDriver, call: Call) -> Answer:
    value = driver.end.store.read(call.given.decode("utf-8", "replace"), call.args[0])
    if value is None:
        return -errno.ENOENT
    raw = value.encode("utf-8", "replace")
    return (len(raw), raw) if len(raw) <= call.room else -errno.E2BIG


def write(driver: CDriver, call: Call) -> Answer:
    path, _, value = call.given.decode("utf-8", "replace").partition("\0")
    driver.end.store.write(path, value, call.args[0])
    return 0


def rm(driver: CDriver, call: Call) -> Answer:
    driver.end.store.remove(call.given.decode("utf-8", "replace"), call.args[0])
    return 0


def tx_start(driver: CDriver, _call: Call) -> Answer:
    return driver.begin()


def tx_end(driver: CDriver, call: Call) -> Answer:
    driver.commit(call.args[0], abort=bool(call.args[1]))
    return 0


def watch(driver: CDriver, call: Call) -> Answer:
    path = call.given.decode("utf-8", "replace")
    driver.nr_watches += 1
    number = driver.nr_watches
    driver.watches[number] = driver.end.store.watch(
        path, driver.watcher(call.args[1], call.args[2])
    )
    return number


def unwatch(driver: CDriver, call: Call) -> Answer:
    found = driver.watches.pop(call.args[0], None)
    if found is None:
        driver.refuse(f"watch {call.args[0]} is none of this end's")
    driver.end.store.unwatch(found)
    return 0


# the device


def switch_state(driver: CDriver, call: Call) -> Answer:
    try:
        state = XenbusState(call.args[0])
    except ValueError:
        driver.refuse(f"goes to {call.args[0]}, which is no XenbusState")
    driver.end.switch_state(state)
    return 0


def fatal(driver: CDriver, call: Call) -> Answer:
    driver.end.fatal(call.given.decode("utf-8", "replace"))
    return 0


def log(driver: CDriver, call: Call) -> Answer:
    domain = driver.domain
    domain.trace.note(domain.domid, call.given.decode("utf-8", "replace"))
    return 0


def now(driver: CDriver, _call: Call) -> Answer:
    return driver.end.now


def after(driver: CDriver, call: Call) -> Answer:
    driver.nr_timers += 1
    number = driver.nr_timers
    run = driver.handler(call.args[1], call.args[2])

    def fire() -> None:
        del driver.timers[number]
        run()

    driver.timers[number] = driver.end.after(call.args[0] & (1 << 63) - 1, fire)
    return number


def cancel(driver: CDriver, call: Call) -> Answer:
    timer = driver.timers.pop(call.args[0], None)
    if timer is not None:
        timer.cancel()
    return 0


# the host


def image_sectors(driver: CDriver, _call: Call) -> Answer:
    return driver.image.size_bytes // SECTOR


def image_writable(driver: CDriver, _call: Call) -> Answer:
    return int(driver.image.writable)


def image_read(driver: CDriver, call: Call) -> Answer:
    sector, size = call.args[:2]
    if not 0 <= sector <= (1 << 55):
        return -errno.EINVAL
    room = bytearray(size)
    driver.image.read_into(memoryview(room), sector * SECTOR)
    return 0, bytes(room)


def image_write(driver: CDriver, call: Call) -> Answer:
    sector = call.args[0]
    if not driver.image.writable:
        return -errno.EROFS
    if not 0 <= sector <= (1 << 55):
        return -errno.EINVAL
    driver.image.write_from(memoryview(call.given), sector * SECTOR)
    return 0


def image_flush(driver: CDriver, _call: Call) -> Answer:
    driver.image.flush()
    return 0


def transmit(driver: CDriver, call: Call) -> Answer:
    driver.port.transmit([call.given])
    return 0


def receive(driver: CDriver, call: Call) -> Answer:
    driver.take_up(call.given)
    return 0


def complete(driver: CDriver, call: Call) -> Answer:
    transfer = driver.transfers.pop(call.args[0], None)
    if transfer is None:
        driver.refuse(f"completes request {call.args[0]}, which is not under way")
    if call.args[1]:
        transfer.complete(call.given)
    else:
        transfer.fail("its frontend says so")
    return 0


_NAMED: Final[dict[str, Callable[[CDriver, Call], Answer]]] = {
    "ALLOC_PAGES": alloc_pages,
    "FREE_PAGES": free_pages,
    "GRANT_ACCESS": grant_access,
    "END_ACCESS": end_access,
    "MAP": map_grants,
    "UNMAP": unmap,
    "COPY_FROM": copy_from,
    "COPY_TO": copy_to,
    "BIND": bind,
    "ALLOC_UNBOUND": alloc_unbound,
    "NOTIFY": notify,
    "MASK": mask,
    "UNMASK": unmask,
    "CLOSE": close,
    "READ": read,
    "WRITE": write,
    "RM": rm,
    "TX_START": tx_start,
    "TX_END": tx_end,
    "WATCH": watch,
    "UNWATCH": unwatch,
    "SWITCH_STATE": switch_state,
    "FATAL": fatal,
    "LOG": log,
    "NOW": now,
    "AFTER": after,
    "CANCEL": cancel,
    "IMAGE_SECTORS": image_sectors,
    "IMAGE_WRITABLE": image_writable,
    "IMAGE_READ": image_read,
    "IMAGE_WRITE": image_write,
    "IMAGE_FLUSH": image_flush,
    "TRANSMIT": transmit,
    "RECEIVE": receive,
    "COMPLETE": complete,
}
ANSWERS: Final = {OP[name]: function for name, function in _NAMED.items()}
NAMES: Final = {number: f"xenpv_{name.lower()}" for name, number in OP.items()}


def answer(driver: CDriver, call: Call) -> tuple[int, bytes]:
    """The result as C has it, and bytes for the driver."""
    try:
        result = ANSWERS[call.op](driver, call)
    except GrantError as error:
        return error.status, b""
    except HypercallError as error:
        return -error.errno, b""
    except StoreError as error:
        return -getattr(errno, error.name, errno.EIO), b""
    except ImageError:
        return -errno.EIO, b""
    except (LocalProtocolError, OverflowError, UnicodeError) as error:
        driver.refuse(f"{NAMES[call.op]} with {call.args}: {error}")
    return result if isinstance(result, tuple) else (result, b"")


def as_frames(frames: list[int]) -> bytes:
    """u32 each."""
    return pack(f"={len(frames)}I", *frames)
