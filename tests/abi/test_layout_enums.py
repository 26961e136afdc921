"""Each enum is complete, and its members are Xen's names without the class' prefix."""

from __future__ import annotations

import errno

import pytest

from xenpv.abi import blkif, evtchn, gnttab, hvm, netif, sched, xen_errno, xenbus, xs
from xenpv.abi.layout import constants

# class: (prefix of Xen's names, what shares the prefix without being a member)
ENUMS = {
    blkif.BLKIF_OP: ("BLKIF_OP_", ()),
    blkif.BLKIF_RSP: ("BLKIF_RSP_", ()),
    evtchn.EVTCHNOP: ("EVTCHNOP_", ()),
    evtchn.EVTCHNSTAT: ("EVTCHNSTAT_", ()),
    evtchn.VIRQ: ("VIRQ_", ()),
    gnttab.GNTMAP: ("GNTMAP_", ("guest_avail_mask",)),
    gnttab.GNTST: ("GNTST_", ()),
    gnttab.GNTTABOP: ("GNTTABOP_", ()),
    hvm.HVM_PARAM: (
        "HVM_PARAM_",
        (
            "CALLBACK_IRQ_TYPE_MASK",
            "CALLBACK_TYPE_GSI",
            "CALLBACK_TYPE_PCI_INTX",
            "CALLBACK_TYPE_VECTOR",
        ),
    ),
    netif.NETIF_RSP: ("NETIF_RSP_", ()),
    netif.NETRXF: ("NETRXF_", ()),
    netif.NETTXF: ("NETTXF_", ()),
    netif.XEN_NETIF_CTRL_HASH_TYPE: ("XEN_NETIF_CTRL_HASH_TYPE_", ()),
    netif.XEN_NETIF_CTRL_STATUS: ("XEN_NETIF_CTRL_STATUS_", ()),
    netif.XEN_NETIF_CTRL_TYPE: ("XEN_NETIF_CTRL_TYPE_", ()),
    netif.XEN_NETIF_EXTRA_TYPE: ("XEN_NETIF_EXTRA_TYPE_", ("MAX",)),
    netif.XEN_NETIF_GSO_TYPE: ("XEN_NETIF_GSO_TYPE_", ()),
    sched.RUNSTATE: ("RUNSTATE_", ()),
    sched.SCHEDOP: ("SCHEDOP_", ()),
    sched.SHUTDOWN: ("SHUTDOWN_", ("MAX",)),
    xs.XS: ("XS_", ("DEBUG", "TYPE_COUNT", "WATCH_PATH", "WATCH_TOKEN")),
}


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.__name__)
def test_enum_has_every_constant_of_its_prefix(enum):
    prefix, others = ENUMS[enum]
    named = {
        name.removeprefix(prefix): value
        for name, value in constants().items()
        if name.startswith(prefix)
    }
    for other in others:
        del named[other]
    members = {name.rstrip("_"): int(member) for name, member in enum.__members__.items()}
    assert members == named


def test_errno_of_xen_is_the_errno_of_linux():
    for name, member in xen_errno.XEN_ERRNO.__members__.items():
        assert member == getattr(errno, name), name


def test_each_xen_errno_is_a_member():
    # The prefix XEN_ alone is shared with half of the headers; an errno is capitals only.
    named = {name for name in constants() if name.startswith("XEN_E") and name[4:].isalnum()}
    assert {f"XEN_{name}" for name in xen_errno.XEN_ERRNO.__members__} == named


def test_states_of_a_device_are_xen_s_in_python_s_spelling():
    # Xen's names are the prefix and words run together: XenbusStateInitWait.
    members = {
        "XenbusState" + name.title().replace("_", ""): int(member)
        for name, member in xenbus.XenbusState.__members__.items()
    }
    named = {n: value for n, value in constants().items() if n.startswith("XenbusState")}
    assert members == named


def test_checksum_flags_of_tx_and_rx_are_swapped():
    assert (int(netif.NETTXF.csum_blank), int(netif.NETTXF.data_validated)) == (1, 2)
    assert (int(netif.NETRXF.csum_blank), int(netif.NETRXF.data_validated)) == (2, 1)
