"""Answers on the pages, against what the sources say is answered; each was found out by asking."""

from __future__ import annotations

import pytest
from protocol import observed
from protocol.texts import UnknownError

# netback.c (linux), xen_nic.c (qemu), netif.ml (mirage)
NET = {
    "a packet of one slot": ("OKAY; passes", "OKAY; passes", "OKAY; passes"),
    "of two": ("2 x OKAY; passes", "ERROR, OKAY; passes", "2 x OKAY; passes"),
    "an extra that the producer cuts off": ("fatal", "ERROR", "OKAY; passes"),
    "an extra of type 0": ("fatal", "2 x ERROR", "2 x OKAY; passes"),
    "an extra of type 5": ("fatal", "2 x ERROR", "2 x OKAY; passes"),
    "two GSO extras": ("OKAY, 2 x NULL; passes", "3 x ERROR", "3 x OKAY; passes"),
    "a HASH extra": ("OKAY, NULL; passes", "2 x ERROR", "2 x OKAY; passes"),
    "MCAST_ADD": ("OKAY, NULL", "2 x ERROR", "2 x OKAY"),
    "MCAST_DEL of a group that is not there": ("OKAY, NULL", "2 x ERROR", "2 x OKAY"),
    "data that the producer cuts off": ("fatal", "ERROR", "ERROR"),
    "18 data slots": ("18 x OKAY; passes", "17 x ERROR, OKAY; passes", "18 x OKAY; passes"),
    "19 data slots": ("19 x OKAY; passes", "18 x ERROR, OKAY; passes", "19 x OKAY; passes"),
    "20 data slots": ("20 x ERROR", "19 x ERROR, OKAY; passes", "20 x OKAY; passes"),
    "21 data slots": ("21 x ERROR", "20 x ERROR, OKAY; passes", "21 x OKAY; passes"),
    "22 data slots": ("fatal", "21 x ERROR, OKAY; passes", "22 x OKAY; passes"),
    "later slots of more bytes than the packet has": (
        "2 x ERROR",
        "ERROR, OKAY; passes",
        "2 x ERROR",
    ),
    "a later slot that crosses its page": ("fatal", "2 x ERROR", "OKAY, ERROR"),
    "13 bytes": ("ERROR", "ERROR", "OKAY"),
    "a first piece of 13 bytes": ("2 x ERROR", "ERROR, OKAY; passes", "2 x OKAY; passes"),
    "a first slot that crosses its page": ("fatal", "ERROR", "ERROR"),
    "a GSO extra of size 0": ("fatal", "2 x ERROR", "2 x OKAY; passes"),
    "a GSO extra of type 3": ("fatal", "2 x ERROR", "2 x OKAY; passes"),
    "a GSO extra and a checksum that is done": (
        "OKAY, NULL; passes",
        "2 x ERROR",
        "2 x OKAY; passes",
    ),
    "a reference that nobody granted": ("ERROR", "ERROR", "ERROR"),
    "the same in the second of two slots": ("OKAY, ERROR", "2 x ERROR", "OKAY, ERROR"),
    "a blank checksum in what is no IP": ("OKAY", "OKAY; passes", "OKAY; passes"),
}


def test_netbacks_answer_packets_as_their_sources_do():
    table = observed.table("table", observed.ERRORS, "netback-tx")
    assert table.columns == ("packet", "linux", "qemu", "mirage")
    assert {row[0]: row[1:] for row in table.rows} == NET


# netback's hash.c and interface.c
CONTROL = [
    ("GET_HASH_FLAGS before an algorithm", "NOT_SUPPORTED", ""),
    ("SET_HASH_ALGORITHM 2", "INVALID_PARAMETER", ""),
    ("SET_HASH_ALGORITHM TOEPLITZ", "SUCCESS", ""),
    ("GET_HASH_FLAGS", "SUCCESS", "15"),
    ("SET_HASH_FLAGS of an unknown bit", "INVALID_PARAMETER", ""),
    ("SET_HASH_FLAGS of all four", "SUCCESS", ""),
    ("SET_HASH_KEY: reference, 41 bytes", "INVALID_PARAMETER", ""),
    ("SET_HASH_KEY: reference that nobody granted", "INVALID_PARAMETER", ""),
    ("SET_HASH_KEY: reference, 40 bytes", "SUCCESS", ""),
    ("GET_HASH_MAPPING_SIZE", "SUCCESS", "128"),
    ("SET_HASH_MAPPING_SIZE 129", "INVALID_PARAMETER", ""),
    ("SET_HASH_MAPPING_SIZE 4", "SUCCESS", ""),
    ("SET_HASH_MAPPING: reference, 5 entries from 0", "INVALID_PARAMETER", ""),
    ("SET_HASH_MAPPING: an entry that is no queue", "INVALID_PARAMETER", ""),
    ("SET_HASH_MAPPING: reference, 4 entries from 0", "SUCCESS", ""),
    ("GET_GREF_MAPPING_SIZE: queue", "NOT_SUPPORTED", ""),
    ("ADD_GREF_MAPPING: queue, reference, count", "NOT_SUPPORTED", ""),
    ("DEL_GREF_MAPPING: queue, reference, count", "NOT_SUPPORTED", ""),
    ("a type of 11", "NOT_SUPPORTED", ""),
]


def test_linux_answers_control_requests_as_its_source_does():
    table = observed.table("table", observed.ERRORS, "netback-control")
    assert [(row[0], row[2], row[3]) for row in table.rows] == CONTROL


OK, ERR, NO = "OKAY", "ERROR", "EOPNOTSUPP"
# blkback.c (linux), dataplane/xen-block.c (qemu), td-req.c (tapdisk), blkback.ml (mirage)
BLK = {
    "READ of a page": (OK, OK, OK, OK),
    "WRITE of a page": (OK, OK, OK, OK),
    "an operation of 7": (NO, ERR, NO, NO),
    "READ without segments": (ERR, OK, ERR, ERR),
    "WRITE without segments": (ERR, OK, ERR, ERR),
    "WRITE_BARRIER without segments": (OK, ERR, OK, NO),
    "FLUSH_DISKCACHE without segments": (OK, OK, NO, NO),
    "FLUSH_DISKCACHE with data": (OK, OK, NO, NO),
    "READ of 12 segments": (ERR, ERR, ERR, ERR),
    "a segment that ends before it begins": (ERR, ERR, ERR, ERR),
    "a segment beyond its page": (ERR, ERR, ERR, ERR),
    "READ up to the end": (OK, OK, OK, OK),
    "READ beyond the end": (ERR, ERR, ERR, ERR),
    "a sector number near 2^64": (ERR, ERR, ERR, ERR),
    "READ into a page that was granted for reading": (ERR, ERR, ERR, ERR),
    "READ of a reference that nobody granted": (ERR, ERR, ERR, ERR),
    "WRITE to a read-only disk": (ERR, ERR, ERR, ERR),
    "FLUSH_DISKCACHE on a read-only disk": (ERR, ERR, NO, NO),
    "DISCARD": (OK, OK, NO, NO),
    "DISCARD beyond the end": (ERR, ERR, NO, NO),
    "DISCARD on a read-only disk": (ERR, ERR, NO, NO),
    "INDIRECT READ of 12 segments": (OK, ERR, NO, OK),
    "INDIRECT of a DISCARD": (ERR, ERR, NO, ERR),
    "INDIRECT without segments": (ERR, ERR, NO, ERR),
    "INDIRECT of 257 segments": (ERR, ERR, NO, ERR),
    "INDIRECT whose table nobody granted": (ERR, ERR, NO, ERR),
    "INDIRECT of an INDIRECT": (ERR, ERR, NO, ERR),
}


def test_block_backends_answer_requests_as_their_sources_do():
    table = observed.table("table", observed.ERRORS, "blkback")
    assert table.columns == ("request", "linux", "qemu", "tapdisk", "mirage")
    assert {row[0]: row[1:] for row in table.rows} == BLK


# xen/common/event_channel.c, event_fifo.c
EVENTS = """
alloc_unbound         for a peer that is not there                0; a port
alloc_unbound         of a domain that is not there               ESRCH
alloc_unbound         of another's domain                         EPERM
bind_interdomain      to a port that waits for this domain        0; a port
bind_interdomain      to a port that waits for another            EINVAL
bind_interdomain      to one that is bound already                EINVAL
bind_interdomain      of a domain that is not there               ESRCH
bind_virq             VIRQ_TIMER on its vcpu 1                    0; a port
bind_virq             the same once more                          EEXIST
bind_virq             a global one on vcpu 1                      EINVAL
bind_virq             a global one of dom0's, by a guest          EBUSY
bind_virq             number 24                                   EINVAL
bind_virq             on a vcpu that is not there                 ENOENT
bind_ipi              on a vcpu that is not there                 ENOENT
close                 a port that is not open                     EINVAL
close                 an interdomain port                         0
send                  on an unbound port                          0
send                  on a VIRQ's                                 EINVAL
send                  on a port that is not open                  EINVAL
status                of a closed port                            0; status EVTCHNSTAT_closed
status                of a port beyond all                        EINVAL
status                of another's port                           EPERM
status                of a domain that is not there               ESRCH
bind_vcpu             an interdomain port to vcpu 1               0
bind_vcpu             to a vcpu that is not there                 ENOENT
bind_vcpu             an IPI                                      EINVAL
unmask                a port that is not open                     0
unmask                a port beyond all                           EINVAL
reset                 of one's own                                0
reset                 of another's domain                         EPERM
init_control          at offset 0 of an own page                  0; link_bits 17
init_control          the same vcpu again                         EINVAL
init_control          at an offset that is no multiple of 8       EINVAL
init_control          at offset 4032, where it crosses the page   EINVAL
init_control          on a vcpu that is not there                 ENOENT
expand_array          in the 2-level layout                       EOPNOTSUPP
expand_array          where no memory is                          EINVAL
set_priority          in the 2-level layout                       ENOSYS
set_priority          16 of an open port                          EINVAL
set_priority          0 of an open port                           0
"""
# xen/common/grant_table.c
GRANTS = """
map_grant_ref         for writing what may be written             GNTST_okay
map_grant_ref         for reading what may be read                GNTST_okay
map_grant_ref         for writing what may be read                GNTST_general_error
map_grant_ref         neither host nor device                     GNTST_bad_gntref
map_grant_ref         for a device, by an HVM guest               GNTST_general_error
map_grant_ref         an entry that is not filled in              GNTST_general_error
map_grant_ref         a reference beyond the table                GNTST_bad_gntref
map_grant_ref         of a domain that is not there               GNTST_bad_domain
map_grant_ref         granted to somebody else                    GNTST_general_error
map_grant_ref         a part of a page, version 2                 GNTST_general_error
map_grant_ref         a transitive one, version 2                 GNTST_general_error
unmap_grant_ref       a handle that was not given                 GNTST_bad_handle
unmap_grant_ref       twice                                       GNTST_bad_handle
copy                  from a reference to an own page             GNTST_okay
copy                  to a reference that may be read             GNTST_general_error
copy                  past the end of a page                      GNTST_bad_copy_arg
copy                  of 0 bytes                                  GNTST_okay
copy                  a reference beyond the table                GNTST_bad_gntref
copy                  of a domain that is not there               GNTST_bad_domain
copy                  within a part of a page, version 2          GNTST_okay
copy                  outside that part                           GNTST_general_error
set_version           3                                           EINVAL
set_version           2                                           0
set_version           2, while an entry is mapped                 EBUSY
"""


def _literal(text):
    return [
        (line[:22].strip(), line[22:66].strip(), line[66:]) for line in text.strip().splitlines()
    ]


@pytest.mark.parametrize(
    ("name", "prefix", "text"), [("evtchn", "`EVTCHNOP_", EVENTS), ("gnttab", "`GNTTABOP_", GRANTS)]
)
def test_hypercalls_answer_as_xen_does(name, prefix, text):
    table = observed.table("table", observed.ERRORS, name)
    found = [(row[0].removeprefix(prefix).rstrip("`"), row[1], row[2]) for row in table.rows]
    assert found == _literal(text)


def test_error_numbers_are_xens():
    table = observed.table("table", observed.OBSERVED, "errnos")
    assert {row[0].strip("`"): int(row[1]) for row in table.rows} == {
        "XEN_EPERM": 1, "XEN_ENOENT": 2, "XEN_ESRCH": 3, "XEN_EBUSY": 16, "XEN_EEXIST": 17, "XEN_EINVAL": 22,
        "XEN_ENOSYS": 38, "XEN_EOPNOTSUPP": 95,
    }  # fmt: skip


# xenstored of Xen's tree in C, oxenstored; reply or name of the error
STORE = """
READ                a node that is not there                       ENOENT            ENOENT
READ                without the NUL at its end                     EINVAL            EINVAL
READ                two strings                                    EINVAL            EINVAL
READ                a path with a blank                            EINVAL            EINVAL
READ                a path that ends with /                        EINVAL            EINVAL
READ                a transaction that is not open                 ENOENT            EIO
READ                by a guest, what dom0 alone may read           EACCES            EACCES
READ                by a guest, what is missing below that         EACCES            ENOENT
DIRECTORY           a node without children                        empty             empty
WRITE               two levels that are not there                  OK                OK
WRITE               by a guest, what dom0 alone may write          EACCES            EACCES
MKDIR               a node that is there                           OK                OK
RM                  a node that is not there, whose parent is      OK                OK
RM                  a node whose parent is not there               ENOENT            ENOENT
RM                  the root                                       EINVAL            OK
SET_PERMS           no permission                                  EINVAL            EINVAL
SET_PERMS           a letter that is none                          EINVAL            EINVAL
SET_PERMS           by a guest, to give its node away              EPERM             EACCES
WATCH               the same path and token twice                  EEXIST            EEXIST
WATCH               by a guest, one string                         EINVAL            EINVAL
UNWATCH             what is not watched                            ENOENT            ENOENT
TRANSACTION_START   inside a transaction                           EBUSY             EBUSY
TRANSACTION_END     without one                                    ENOENT            ENOENT
TRANSACTION_END     neither T nor F                                EINVAL            EINVAL
INTRODUCE           by a guest                                     EACCES            EACCES
RELEASE             a domain that is not introduced                ENOENT            EINVAL
GET_DOMAIN_PATH     of any number                                  /local/domain/42  /local/domain/42
GET_DOMAIN_PATH     of what is no number                           EINVAL            /local/domain/0
IS_DOMAIN_INTRODUCED by a guest                                    EACCES            EACCES
RESET_WATCHES       by a guest                                     OK                OK
DIRECTORY_PART      an offset beyond the end                       no names          no names
CONTROL             by a guest                                     EACCES            OK
"""


def test_stores_answer_as_both_daemons_do():
    table = observed.table("table", observed.ERRORS, "xenstore")
    found = [
        "  ".join((row[0].removeprefix("`XS_").rstrip("`"), *row[1:])).split() for row in table.rows
    ]
    assert found == [line.split() for line in STORE.strip().splitlines()]


CONFLICTS = [
    ("reads a, writes nothing", "writes a", "EAGAIN", "OK"),
    ("reads a, writes b", "writes a", "EAGAIN", "EAGAIN"),
    ("reads permissions of a, writes b", "changes them", "EAGAIN", "EAGAIN"),
    ("writes a", "writes a", "EAGAIN", "OK"),
    ("lists d, writes b", "creates d/z", "EAGAIN", "EAGAIN"),
    ("lists d, writes b", "writes d/y", "OK", "OK"),
    ("creates d/x", "creates d/z", "EAGAIN", "OK"),
    ("writes d/y", "creates d/z", "OK", "OK"),
    ("reads d/q, which is missing, writes b", "creates d/q", "EAGAIN", "OK"),
    ("removes d", "writes d/y", "EAGAIN", "OK"),
    ("reads a, writes b", "writes something else", "OK", "OK"),
]
WATCHES = [
    ("`d`", "WRITE of d/x", "`d/x`", "`d/x`"),
    ("`d/x`", "the same value again", "`d/x`", "`d/x`"),
    ("`d/x`", "WRITE of d/x2", "none", "none"),
    ("`d`", "WRITE of d/p/q, two levels that are new", "`d/p/q`", "`d/p/q`"),
    ("`d/y/z`", "RM of d", "`d/y/z`", "`d/y/z`"),
    ("`d`", "RM of d/y, which has a child", "`d/y`", "`d/y`"),
    ("`d/none`", "RM of d", "none", "`d/none`"),
    ("`d`", "MKDIR of what is there", "none", "none"),
    ("`d`", "SET_PERMS of d/x", "`d/x`", "`d/x`"),
]
PERMISSIONS = {
    "`n0`": "no no", "`r0`": "yes no", "`w0`": "no yes", "`b0`": "yes yes", "`n0 r1`": "yes no", "`n0 r2`": "no no",
    "`b0 n1`": "no no", "`n1`": "yes yes", "`n2 b1`": "yes yes",
}  # fmt: skip
QUOTAS = {
    "nodes": ("1000", "1001"), "watches": ("128", "102"), "outstanding": ("20", "1024"), "memory": ("2621440", "no limit"),
    "transactions": ("10", "12"), "transaction-nodes": ("1024", "no limit"),
    "node-permissions": ("5", "no limit"), "path-max": ("2048", "no limit"), "node-size": ("2048", "no limit"),
}  # fmt: skip


def test_transactions_conflict_as_in_both_daemons():
    assert list(observed.table("table", observed.OBSERVED, "xs-conflicts").rows) == CONFLICTS


def test_watches_fire_as_in_both_daemons():
    assert list(observed.table("table", observed.OBSERVED, "xs-watches").rows) == WATCHES


def test_permissions_mean_what_they_mean():
    rows = observed.table("table", observed.OBSERVED, "xs-permissions").rows
    assert {row[0]: f"{row[2]} {row[3]}" for row in rows} == PERMISSIONS


def test_quotas_are_the_daemons():
    rows = observed.table("table", observed.OBSERVED, "xs-quotas").rows
    assert {row[0].strip("`"): row[1:] for row in rows} == QUOTAS


# Microsoft, "Verifying the RSS Hash Calculation"
RSS = ["323e8fc2 51ccc178", "d718262a c626b0ea", "d2d0a5de 5c2b394a", "82989176 afc7327f", "5d1809c5 10e828a2",
       "2cc18cd5 40207d3d", "0f0c461c dde51bbf", "4b61e985 02d1feef"]  # fmt: skip


def test_the_hash_is_microsofts():
    rows = observed.table("table", observed.OBSERVED, "rss").rows
    assert [" ".join(row[2:]).replace("`", "") for row in rows] == RSS


# io/blkif.h of 2024, and what drivers made of those before: sectors, requests, segments
UNITS = {"spec2024": "512 512 512", "ss2019": "ss ss ss", "linux": "512 512 512", "qemu2024": "512 512 512",
         "freebsd": "ss ss 512", "minios": "ss 512 512"}  # fmt: skip


def test_sectors_are_what_each_driver_takes_them_for():
    rows = observed.table("table", observed.OBSERVED, "blk-units").rows
    short = {"512 bytes": "512", "logical sectors": "ss"}
    assert {row[0].strip("`"): " ".join(short[one] for one in row[2:5]) for row in rows} == UNITS


def test_opcodes_are_the_headers():
    events = observed.table("table", observed.OPCODES, "evtchn")
    assert [(row[0], row[2]) for row in events.rows] == [
        (str(number), f"`evtchn_{name}`") for number, name in enumerate(
            ("bind_interdomain", "bind_virq", "bind_pirq", "close", "send", "status", "alloc_unbound", "bind_ipi",
             "bind_vcpu", "unmask", "reset", "init_control", "expand_array", "set_priority"))
    ]  # fmt: skip
    grants = observed.table("table", observed.OPCODES, "gnttab")
    assert [row[1].removeprefix("`GNTTABOP_").rstrip("`") for row in grants.rows] == [
        "map_grant_ref", "unmap_grant_ref", "setup_table", "dump_table", "transfer", "copy", "query_size",
        "unmap_and_replace", "set_version", "get_status_frames", "get_version", "swap_grant_ref", "cache_flush",
    ]  # fmt: skip
    store = {row[0]: row[2] for row in observed.table("table", observed.OPCODES, "xs_wire").rows}
    assert [number for number, who in store.items() if who == "privileged"] == [
        "0",
        "8",
        "9",
        "17",
        "18",
        "19",
        "24",
        "25",
        "26",
    ]
    assert [number for number, who in store.items() if not who] == ["15", "16", "65535"]


@pytest.mark.parametrize("kind", [observed.ERRORS, observed.OPCODES, observed.OBSERVED])
def test_a_table_that_there_is_not_is_refused(kind):
    with pytest.raises(
        UnknownError, match=f"unknown table 'nothing': expected one of {next(iter(kind))}"
    ):
        observed.table("table", kind, "nothing")
