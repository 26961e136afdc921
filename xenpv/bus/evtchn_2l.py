"""The 2-level ABI as a guest uses it (win-xenbus evtchn_2l.c).

The pending words are common to all vcpus, so each vcpu looks only at the ports whose
channels are bound to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from xenpv.abi._kernel import ffi, lib
from xenpv.xen.domain import Domain

if TYPE_CHECKING:
    from xenpv.bus.evtchn import Channel

UPCALL_PORTS: Final[int] = lib.UPCALL_PORTS
upcall_take: Final = lib.upcall_take


class Processor2L:
    """One vcpu: its upcall and the ports that it looks at."""

    def __init__(
        self,
        domain: Domain,
        vcpu: int,
        channels: dict[int, Channel],
        drain: Callable[[Channel], None],
    ) -> None:
        self._domain = domain
        self._vcpu = vcpu
        self._channels = channels
        self._drain = drain
        self._attach()

    def _attach(self) -> None:
        """The kernel's upcall, over the ports of the channels that are there."""
        vcpu = self._vcpu
        handle = lib.upcall_new(self._domain.kernel, vcpu, 0)  # 0: nothing is acknowledged unasked
        if handle == ffi.NULL:
            raise MemoryError("no memory for an upcall")
        self.handle: Any = ffi.gc(handle, lib.upcall_free)
        self._ports = lib.upcall_ports(handle)
        for port, channel in self._channels.items():
            lib.upcall_port(handle, port, channel.vcpu == vcpu, channel.auto_mask)

    def __getstate__(self) -> dict[str, Any]:
        """Without the kernel's."""
        return {
            name: value for name, value in vars(self).items() if name not in ("handle", "_ports")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._attach()

    def upcall(self) -> None:
        port = upcall_take(self.handle)
        if port > 0:  # the only one due, masked if it is to be and acknowledged
            try:
                channel = self._channels[port]
            except KeyError:
                return  # nobody's, but acknowledged
            channel.count = (channel.count + 1) & 0xFFFFFFFF
            channel.callback()
        elif port:
            self._several(port)

    def _several(self, result: int) -> None:
        while result:
            if result <= lib.KERNEL_E_FORKED:
                self._domain.check(result)
            count = -1 - result
            due = []
            for port in ffi.unpack(self._ports, count) if count > 0 else [result]:
                channel = self._channels.get(port)
                if channel is not None:
                    due.append(channel)
                else:
                    # Nobody owns it: acknowledged, or the scan would find it for ever.
                    self._domain.check(lib.evtchn_clear_pending(self._domain.kernel, port))
            for channel in due:
                self._drain(channel)
            result = upcall_take(self.handle) if count >= UPCALL_PORTS else 0


class Evtchn2L:
    """The vcpus of one guest. Every port has its bits in shared_info from the start."""

    def __init__(
        self, domain: Domain, channels: dict[int, Channel], drain: Callable[[Channel], None]
    ) -> None:
        self.processors = [
            Processor2L(domain, vcpu, channels, drain) for vcpu in range(domain.processors)
        ]

    def upcall(self, vcpu: int) -> Callable[[], None]:
        """What takes the upcall of that vcpu."""
        return self.processors[vcpu].upcall

    def port_enable(self, port: int) -> None:
        """There is nothing to make room for."""

    def port_bind(self, port: int, vcpu: int, auto_mask: bool) -> None:
        """The port is delivered on `vcpu`, and masked before that if it is auto-masked."""
        for index, processor in enumerate(self.processors):
            lib.upcall_port(processor.handle, port, index == vcpu, auto_mask)

    def port_disable(self, port: int) -> None:
        """Nobody's: vcpu 0 acknowledges what still comes."""
        self.port_bind(port, 0, False)
