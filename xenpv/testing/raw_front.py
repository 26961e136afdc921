"""Raw frontends: the hostile side of a device, or the barest honest one.

A raw end has what a guest kernel has and no policy: pages, grants, an event channel, its
keys in the store. Everything it puts on the wire is what its caller said, so a test can say
what no driver would:

    with world_raw(seed=7) as world:
        world.vbd.sring.req_prod = world.vbd.sring.size + 1
        world.vbd.notify()
        world.run()
        assert world.vbd.backend.broken

Pages are read and written through the domain's accessors, which the access hook sees; no
raw pointer leaves the kernel. What survives it all must be the backend: answer with an
error, or break the device, and touch nothing that was not granted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.xenbus import XenbusState
from xenpv.back.xenbus import Device, state_of
from xenpv.bus.evtchn import Channel, EvtchnInterface
from xenpv.bus.gnttab import GnttabInterface
from xenpv.errors import LocalProtocolError
from xenpv.host.xs import XsHandle
from xenpv.platform import Platform
from xenpv.testing.sring import RawSring
from xenpv.xen.domain import Domain

BACKEND_DOMID: Final = 0


class RawGuest:
    """A guest's bare machine: `domain` with an upcall handler and a grant table, no kernel.

    `xs` is a privileged client, so that no permission stands between a test and a key.
    """

    def __init__(self, platform: Platform, domain: Domain) -> None:
        self.platform = platform
        self.domain = domain
        self.evtchn = EvtchnInterface(domain)
        self.gnttab = GnttabInterface(domain)
        self.xs = XsHandle(platform.xenstored.connect_local(f"raw d{domain.domid}"))

    @property
    def domid(self) -> int:
        return self.domain.domid

    def page(self, count: int = 1) -> int:
        """First pfn of `count` adjacent pages; HypercallError(ENOMEM) when none are left."""
        return self.domain.pages.alloc(count)

    def grant(self, pfn: int, *, readonly: bool = False, domid: int = BACKEND_DOMID) -> int:
        """A new reference by which `domid` may map or copy page `pfn`."""
        return self.gnttab.permit_foreign_access(domid, pfn, readonly=readonly)

    def set_grant(self, ref: int, *, flags: int, domid: int = BACKEND_DOMID, pfn: int = 0) -> None:
        """Overwrite an entry as the guest may at any moment, mapped or not: GTF_* flags.

        HypercallError(EINVAL): `ref` lies beyond the frames of the table.
        """
        done = lib.grant_entry_set(self.domain.kernel, ref, domid, pfn, flags)
        if done < 0:
            self.domain.fail(done, f"grant entry {ref}")

    def revoke(self, ref: int) -> bool:
        """Take a reference back; False while the backend has it mapped."""
        return self.gnttab.revoke_foreign_access(ref)


class RawFront:
    """One device of a raw guest. `events` counts what the backend's notifications delivered.

    `on_event` is called at each delivery; without one the events are only counted.
    """

    kind = ""

    def __init__(self, guest: RawGuest, devid: int, backend_kind: str = "") -> None:
        self.backend_kind = backend_kind or self.kind
        self.guest = guest
        self.platform = guest.platform
        self.domain = guest.domain
        self.devid = devid
        self.path = f"/local/domain/{guest.domid}/device/{self.kind}/{devid}"
        self.backend_path = (
            f"/local/domain/{BACKEND_DOMID}/backend/{self.backend_kind}/{guest.domid}/{devid}"
        )
        self.on_event: Callable[[], object] | None = None
        self._channel: Channel | None = None

    # store

    def write_key(self, key: str, value: str) -> None:
        """A key of the frontend's directory; any text, and any path below it."""
        self.guest.xs.write(f"{self.path}/{key}", value)

    def read_key(self, key: str) -> str | None:
        return self.guest.xs.read(f"{self.path}/{key}")

    def remove_key(self, key: str) -> None:
        """A subtree of the frontend's directory; "" removes all of it."""
        self.guest.xs.rm(f"{self.path}/{key}".rstrip("/"))

    def backend_key(self, key: str) -> str | None:
        return self.guest.xs.read(f"{self.backend_path}/{key}")

    @property
    def state(self) -> XenbusState:
        """What the frontend's `state` says; UNKNOWN for anything that is no state."""
        return state_of(self.read_key("state"))

    @state.setter
    def state(self, state: int) -> None:
        self.write_key("state", str(int(state)))

    @property
    def backend_state(self) -> XenbusState:
        return state_of(self.backend_key("state"))

    @property
    def backend(self) -> Device | None:
        """The device as its backend driver has it; None once it is gone."""
        return self.platform.backends.device(self.backend_kind, self.guest.domid, self.devid)

    # events

    @property
    def port(self) -> int:
        """The event channel's port in the guest; 0 before `attach`."""
        return 0 if self._channel is None else self._channel.port

    @property
    def events(self) -> int:
        return 0 if self._channel is None else self._channel.count

    def notify(self) -> None:
        """EVTCHNOP_send, whether or not the ring asked for it."""
        self.domain.evtchn.send(self.port)

    def hang_up(self) -> None:
        """The port goes, without a word to the backend; a second call does nothing."""
        channel, self._channel = self._channel, None
        if channel is not None:
            self.guest.evtchn.close(channel)

    def _event(self) -> None:
        if self.on_event is not None:
            self.on_event()

    # connection

    def attach(self) -> None:
        """Rings, their grants and the port; nothing is in the store yet."""
        self._channel = self.guest.evtchn.open_unbound(BACKEND_DOMID, self._event)
        self.guest.evtchn.unmask(self._channel, force=True)

    def keys(self) -> dict[str, str]:
        """What an honest frontend of this kind writes before it connects."""
        raise NotImplementedError

    def announce(self, overrides: Mapping[str, str | None] | None = None) -> None:
        """Write `keys`, with `overrides` of any kind (None: leave that key out), then the state
        at which the backend connects."""
        keys = {**self.keys(), **(overrides or {})}
        present = {key: value for key, value in keys.items() if value is not None}
        self.guest.xs.write_all(self.path, present)

    def finish(self) -> None:
        """What is left to do once the backend is Connected. LocalProtocolError if it is not."""
        if self.backend_state is not XenbusState.CONNECTED:
            broken = "" if self.backend is None else self.backend.broken
            raise LocalProtocolError(
                f"{self.backend_path} is {self.backend_state.name.lower()}: {broken or 'no reason'}"
            )

    def connect(self, overrides: Mapping[str, str | None] | None = None) -> None:
        """All of it, letting the platform run. LocalProtocolError if the backend refuses."""
        self.platform.run()
        self.attach()
        self.announce(overrides)
        self.platform.run()
        self.finish()
        self.platform.run()


class RawBlkFront(RawFront):
    """A block frontend: one ring of `1 << order` pages, x86_64 ABI.

    `sring` stands from `attach` on; its requests are `blkif_request` (112 bytes).
    """

    kind = "vbd"

    def __init__(
        self, guest: RawGuest, devid: int, *, order: int = 0, backend_kind: str = ""
    ) -> None:
        super().__init__(guest, devid, backend_kind)
        self.order = order
        self.refs: list[int] = []
        self.sring: RawSring

    def attach(self) -> None:
        super().attach()
        pages = 1 << self.order
        pfn = self.guest.page(pages)
        self.refs = [self.guest.grant(pfn + index) for index in range(pages)]
        self.sring = RawSring(self.domain, pfn, pages, req="blkif_request", rsp="blkif_response")

    def keys(self) -> dict[str, str]:
        keys = {"ring-ref": str(self.refs[0])}
        if self.order:
            keys = {f"ring-ref{index}": str(ref) for index, ref in enumerate(self.refs)}
            keys["ring-page-order"] = str(self.order)
        return {**keys, "event-channel": str(self.port), "protocol": "x86_64-abi", "state": "3"}

    def finish(self) -> None:
        super().finish()
        self.state = XenbusState.CONNECTED


class RawNetFront(RawFront):
    """A network frontend of one queue and one event channel; `tx` and `rx` are its rings.

    `tx` stands from `attach` on: requests are `netif_tx_request` (12 bytes, an extra takes 8
    of them), those of `rx` `netif_rx_request` (8 bytes).
    """

    kind = "vif"

    def __init__(self, guest: RawGuest, devid: int) -> None:
        super().__init__(guest, devid)
        self.tx_ref = 0
        self.rx_ref = 0
        self.tx: RawSring
        self.rx: RawSring

    @property
    def sring(self) -> RawSring:
        """The ring towards the backend: `tx`."""
        return self.tx

    def attach(self) -> None:
        super().attach()
        pfn = self.guest.page()
        self.tx_ref = self.guest.grant(pfn)
        self.tx = RawSring(self.domain, pfn, 1, req="netif_tx_request", rsp="netif_tx_response")
        pfn = self.guest.page()
        self.rx_ref = self.guest.grant(pfn)
        self.rx = RawSring(self.domain, pfn, 1, req="netif_rx_request", rsp="netif_rx_response")

    def keys(self) -> dict[str, str]:
        return {
            "request-rx-copy": "1",
            "feature-sg": "1",
            "feature-rx-notify": "1",
            "feature-gso-tcpv4": "1",
            "feature-gso-tcpv6": "1",
            "feature-ipv6-csum-offload": "1",
            "tx-ring-ref": str(self.tx_ref),
            "rx-ring-ref": str(self.rx_ref),
            "event-channel": str(self.port),
            "state": "4",
        }
