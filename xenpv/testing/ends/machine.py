"""The domain that drivers under test run in: what its kernel has for all of them."""

from __future__ import annotations

from xenpv.back.store import BackStore
from xenpv.back.xenbus import Ports
from xenpv.bus.gnttab import GnttabInterface
from xenpv.xen.domain import Domain


class Machine:
    """`ports` hand events to tasks, `store` is the domain's connection to xenstored."""

    def __init__(self, domain: Domain, ports: Ports, store: BackStore) -> None:
        self.domain = domain
        self.ports = ports
        self.store = store
        self._gnttab: GnttabInterface | None = None

    @property
    def gnttab(self) -> GnttabInterface:
        """The references of the domain's own table."""
        if self._gnttab is None:
            self._gnttab = GnttabInterface(self.domain)
        return self._gnttab
