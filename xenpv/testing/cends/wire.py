"""What Python and the C runtime say to each other: the declarations of runtime/wire.h."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import attrs
from cffi import FFI

HERE: Final = Path(__file__).parent
RESULT_ABORT: Final = -(1 << 63)

FUNCTIONS: Final = """
typedef int64_t (*host_call)(void *, const struct xenpv_call *, const void *, void *);
uint64_t xenpv_open(void);
struct xenpv_end *xenpv_end_new(host_call, void *access, void *context, void *machine,
                                int memory, uint32_t domid, uint32_t otherend_id,
                                const char *nodename, const char *otherend);
void xenpv_end_free(struct xenpv_end *);
const struct xenpv_failure *xenpv_end_failure(struct xenpv_end *);
uint64_t xenpv_end_pc(struct xenpv_end *);
uint32_t xenpv_end_blocks(struct xenpv_end *, uint64_t *size, uint64_t *pc);
int xenpv_enter(struct xenpv_end *, const struct xenpv_enter *, const void *, int64_t *);
"""


def _declared() -> Any:
    declared: Any = FFI()
    declared.cdef((HERE / "runtime" / "wire.h").read_text())
    declared.cdef(FUNCTIONS)
    return declared


ffi: Final = _declared()


def constants(enum: str, prefix: str) -> dict[str, int]:
    """Names of an enum of wire.h, without their prefix."""
    values: dict[str, int] = ffi.typeof(f"enum {enum}").relements
    return {name.removeprefix(prefix): value for name, value in values.items()}


OP: Final = constants("xenpv_op", "OP_")
ENTER: Final = constants("xenpv_entry", "ENTER_")
ENDING: Final = constants("xenpv_ending", "")
MESSAGE: Final = constants("xenpv_message", "M_")
FAILED: Final = constants("xenpv_failure_kind", "FAILED_")


@attrs.frozen
class Failure:
    """Why the runtime stopped a driver; `pc` is an address where it was loaded."""

    kind: int
    pc: int
    text: str

    @classmethod
    def of(cls, raw: Any) -> Failure:
        text = ffi.string(raw.text).decode("utf-8", "replace")
        return cls(int(raw.kind), int(raw.pc), text)


@attrs.frozen
class Blocks:
    """What a driver left on its heap: how many blocks, the first one's size and maker."""

    count: int = 0
    size: int = 0
    pc: int = 0


@attrs.frozen
class Call:
    """What a driver asks; `given` are its bytes, `room` is how many an answer may have."""

    op: int
    args: tuple[int, ...]
    given: bytes
    room: int


@attrs.frozen(kw_only=True)
class Entry:
    """What of a driver is called; handlers and contexts are addresses in its process."""

    what: int
    handler: int = 0
    context: int = 0
    args: tuple[int, ...] = ()
    data: bytes | None = None
    size: int = 0
    steps: int
    seconds: float

    def raw(self) -> Any:
        """As struct xenpv_enter."""
        enter = ffi.new("struct xenpv_enter *")
        enter.what = self.what
        enter.handler = self.handler
        enter.context = self.context
        for at, value in enumerate(self.args):
            enter.args[at] = value
        enter.size = self.size
        enter.has_data = self.data is not None
        enter.budget = self.steps
        enter.milliseconds = int(self.seconds * 1000)
        return enter
