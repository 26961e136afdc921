"""The choice of an ABI, and EVTCHNOP_reset as a guest can live with it (win-xenbus evtchn.c)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xenpv.abi.evtchn import EVTCHNSTAT
from xenpv.abi.hvm import HVM_PARAM
from xenpv.bus.channel import Channel
from xenpv.bus.evtchn_2l import Evtchn2L
from xenpv.bus.evtchn_fifo import EvtchnFifo
from xenpv.errors import HypercallError
from xenpv.xen.domain import Domain

# The ports that the toolstack bound: a reset must not lose them.
FIXED_PORTS: Final = (HVM_PARAM.STORE_EVTCHN, HVM_PARAM.CONSOLE_EVTCHN)

Abi = Evtchn2L | EvtchnFifo
Drain = Callable[[Channel], None]


def acquire(domain: Domain, channels: dict[int, Channel], drain: Drain, *, fifo: bool) -> Abi:
    """The FIFO ABI if it is asked for and every vcpu gets a control block, else the 2-level."""
    if fifo:
        abi = EvtchnFifo(domain, channels, drain)
        try:
            abi.acquire()
        except HypercallError:
            release(domain, abi)
        else:
            return abi
    return Evtchn2L(domain, channels, drain)


def release(domain: Domain, abi: Abi) -> None:
    """Back to the 2-level ABI: no channel is left but the fixed ones, under new ports."""
    if isinstance(abi, EvtchnFifo):
        reset(domain)
        abi.release()


def renew(domain: Domain, abi: Abi) -> None:
    """After a suspend: no channel is left but the fixed ones, under new ports.

    Where the domain is the same its ports are still bound. The driver leaves those of the
    2-level ABI so, and has a few less with every resume; here they go too.
    """
    if isinstance(abi, EvtchnFifo):
        release(domain, abi)
    else:
        reset(domain)


def reset(domain: Domain) -> None:
    """EVTCHNOP_reset, with the store's and the console's channel bound again after it.

    Their local ports change, and so do the HVM parameters that say which they are. It relies
    on the daemons' ends being UNBOUND towards this domain once ours are closed. A port that no
    daemon had bound is lost: its parameter becomes 0, or another port would bear its number.
    """
    kept = {param: _remote(domain, domain.hvm_param(param)) for param in FIXED_PORTS}
    domain.evtchn.reset()
    for param, remote in kept.items():
        local = 0 if remote is None else domain.evtchn.bind_interdomain(*remote)
        domain.hvm.set_param(domain.DOMID_SELF, param, local)


def _remote(domain: Domain, port: int) -> tuple[int, int] | None:
    """(domid, port) of the other end; None for 0, and for what is no inter-domain port."""
    if not port:
        return None
    try:
        status = domain.evtchn.status(port)
    except HypercallError:
        return None
    if status.status is not EVTCHNSTAT.interdomain:
        return None
    return status.remote_domid, status.remote_port
