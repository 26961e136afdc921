"""Store keys on the pages, against what the drivers' sources and the toolstack's write."""

from __future__ import annotations

import pytest
from protocol import keys, texts
from protocol.texts import UnknownError

# Each backend's keys, by their sources: xen-netback/xenbus.c, hw/net/xen_nic.c, netif.ml.
NETBACK = {
    "linux": {"feature-sg": "1", "feature-gso-tcpv4": "1", "feature-gso-tcpv6": "1", "feature-ipv6-csum-offload": "1",
              "feature-rx-copy": "1", "feature-rx-flip": "0", "feature-multicast-control": "1",
              "feature-dynamic-multicast-control": "1", "feature-xdp-headroom": "1", "feature-split-event-channels": "1",
              "multi-queue-max-queues": "1, 2", "feature-ctrl-ring": "1"},
    "qemu": {"feature-rx-copy": "1", "feature-rx-flip": "0"},
    "mirage": {"feature-sg": "1", "feature-gso-tcpv4": "0", "feature-rx-copy": "1", "feature-rx-flip": "0",
               "feature-rx-notify": "1", "feature-smart-poll": "0"},
}  # fmt: skip
# win-xenvif frontend.c; xen-netfront.c. "yes": a reference or port.
NETFRONT = {
    "XenVif": {"request-rx-copy": "1", "feature-sg": "1", "feature-rx-notify": "1", "feature-gso-tcpv4": "1",
               "feature-gso-tcpv6": "1", "feature-no-csum-offload": "0", "feature-ipv6-csum-offload": "1",
               "rx-ring-ref": "yes", "event-channel-rx": "yes", "request-multicast-control": "1, 0", "tx-ring-ref": "yes",
               "event-channel-tx": "yes", "ctrl-ring-ref": "yes", "event-channel-ctrl": "yes",
               "multi-queue-num-queues": "1, 2", "queue-N/rx-ring-ref": "yes", "queue-N/event-channel-rx": "yes",
               "queue-N/tx-ring-ref": "yes", "queue-N/event-channel-tx": "yes", "event-channel": "yes"},
    "netfront": {"request-rx-copy": "1", "feature-sg": "1", "feature-rx-notify": "1", "feature-gso-tcpv4": "1",
                 "feature-gso-tcpv6": "1", "feature-ipv6-csum-offload": "1", "rx-ring-ref": "yes", "event-channel-rx": "yes",
                 "tx-ring-ref": "yes", "event-channel-tx": "yes", "multi-queue-num-queues": "1, 2", "xdp-headroom": "0",
                 "queue-N/rx-ring-ref": "yes", "queue-N/event-channel-rx": "yes", "queue-N/tx-ring-ref": "yes",
                 "queue-N/event-channel-tx": "yes", "event-channel": "yes"},
}  # fmt: skip
# xen-blkback/xenbus.c, hw/block/xen-block.c, tapback/frontend.c, blkback.ml.
BLKBACK = {
    "linux": {"feature-max-indirect-segments": "256", "multi-queue-max-queues": "1, 2", "max-ring-page-order": "4",
              "feature-flush-cache": "1", "discard-granularity": "512", "discard-alignment": "0", "discard-secure": "0",
              "feature-discard": "1", "feature-barrier": "1", "feature-persistent": "1", "sectors": "2048", "info": "0",
              "sector-size": "512", "physical-sector-size": "512"},
    "qemu": {"hotplug-status": "connected", "online": "1", "feature-discard": "1", "discard-granularity": "512",
             "discard-alignment": "0", "feature-flush-cache": "1", "max-ring-page-order": "4", "info": "0", "mode": "w",
             "sector-size": "512", "sectors": "2048"},
    "tapdisk": {"max-ring-page-order": "3", "feature-barrier": "1", "sector-size": "512", "sectors": "2048", "info": "0"},
    "mirage": {"hotplug-status": "online", "sector-size": "512", "sectors": "2048", "info": "0",
               "feature-max-indirect-segments": "256"},
}  # fmt: skip
BLKFRONT = {
    "XenVbd": {"event-channel": "yes", "ring-ref": "yes", "ring-refM": "yes", "multi-queue-num-queues": "1, 2",
               "ring-page-order": "1", "protocol": "x86_64-abi", "target-id": "0", "feature-surprise-remove": "1",
               "feature-online-resize": "1", "feature-persistent": "1", "queue-N/event-channel": "yes",
               "queue-N/ring-refM": "yes"},
    "blkfront": {"event-channel": "yes", "ring-ref": "yes", "ring-refM": "yes", "multi-queue-num-queues": "2",
                 "ring-page-order": "1", "protocol": "x86_64-abi", "feature-persistent": "0, 1",
                 "queue-N/event-channel": "yes", "queue-N/ring-ref": "yes"},
}  # fmt: skip
# libxl_nic.c and libxl_disk.c, device scripts
TOOLSTACK = {
    "vif-toolstack": {
        "frontend": "backend backend-id handle mac trusted mtu",
        "backend": "frontend script mac bridge handle type hotplug-status frontend-id online mtu rate vlan ip",
    },
    "vbd-toolstack": {
        "frontend": "backend backend-id virtual-device device-type trusted",
        "backend": "frontend frontend-id online removable bootable dev type mode device-type params discard-enable "
                   "specification script hotplug-status physical-device physical-device-path node",
    },
}  # fmt: skip
WRITTEN = {"netback": NETBACK, "netfront": NETFRONT, "blkback": BLKBACK, "blkfront": BLKFRONT}


@pytest.mark.parametrize(
    ("name", "writer"), [(name, one) for name, writers in WRITTEN.items() for one in writers]
)
def test_a_driver_writes_what_its_source_writes(name, writer):
    table = keys.table(name)
    written = {
        key.strip("`"): value.replace("`", "")
        for key, value in zip(table.column("key"), table.column(writer), strict=True)
        if value
    }
    assert written == WRITTEN[name][writer]


@pytest.mark.parametrize("name", TOOLSTACK)
def test_the_toolstack_writes_what_libxl_writes(name):
    table = keys.table(name)
    for end, wanted in TOOLSTACK[name].items():
        found = [
            key.strip("`")
            for key, where in zip(table.column("key"), table.column("in"), strict=True)
            if where == end
        ]
        assert sorted(found) == sorted(wanted.split())


# (table, key): who reads it, by the sources of the readers
READ_BY = {
    ("netback", "feature-gso-tcpv6"): "XenVif, netfront",
    ("netback", "feature-ctrl-ring"): "XenVif, netfront",
    ("netback", "feature-rx-flip"): "",
    ("netback", "feature-no-csum-offload"): "XenVif, netfront",
    ("blkfront", "ejected"): "XenVbd, blkfront",
    ("netback", "feature-xdp-headroom"): "netfront",
    ("netfront", "request-rx-copy"): "linux, qemu",
    ("netfront", "feature-gso-tcpv4"): "linux, mirage",
    ("netfront", "event-channel"): "qemu, mirage",
    ("netfront", "event-channel-tx"): "linux",
    ("netfront", "tx-ring-ref"): "linux, qemu, mirage",
    ("netfront", "ctrl-ring-ref"): "linux",
    ("netfront", "disconnect"): "XenVif",
    ("blkfront", "multi-queue-num-queues"): "linux",
    ("blkfront", "protocol"): "linux, qemu, tapdisk, mirage",
    ("blkfront", "target-id"): "",
    ("blkback", "sectors"): "XenVbd, blkfront",
}


@pytest.mark.parametrize(("name", "key"), READ_BY)
def test_a_key_is_read_by_those_whose_source_reads_it(name, key):
    table = keys.table(name)
    readers = dict(zip(table.column("key"), table.column("read by"), strict=True))
    assert readers[f"`{key}`"] == READ_BY[name, key]


# (table, key): the writer's state then
WHEN = {
    ("netback", "feature-sg"): "state 1",
    ("netfront", "tx-ring-ref"): "state 1",
    ("netfront", "request-multicast-control"): "state 1, state 4",
    ("blkback", "feature-flush-cache"): "state 2",
    ("blkback", "multi-queue-max-queues"): "state 1",
    ("blkfront", "ring-ref"): "state 1",
    ("vif-toolstack", "bridge"): "creation",
    ("vbd-toolstack", "physical-device"): "hotplug script",
}


@pytest.mark.parametrize(("name", "key"), WHEN)
def test_a_key_is_written_when_its_source_writes_it(name, key):
    table = keys.table(name)
    assert (
        dict(zip(table.column("key"), table.column("written"), strict=True))[f"`{key}`"]
        == WHEN[name, key]
    )


# libxl__domain_make: permissions of a guest's tree, domain 1
HOME = {
    "~": "n0 r1", "~/vm": "n0 r1", "~/device": "n0 r1", "~/control": "n0 r1", "~/control/shutdown": "n1",
    "~/control/sysrq": "n1", "~/data": "n1", "~/drivers": "n1", "~/feature": "n1", "~/attr": "n1", "~/error": "n1",
    "~/device/suspend/event-channel": "n1", "~/store/ring-ref": "n0 r1", "~/memory/target": "n0 r1",
    "~/control/platform-feature-xs_reset_watches": "n0 r1", "~/hvmloader": "n0 r1",
}  # fmt: skip


def test_a_new_domains_tree_has_libxls_permissions():
    table = keys.home_table()
    found = dict(zip(table.column("node"), table.column("permissions"), strict=True))
    assert {f"`{node}`" for node in HOME} <= set(found)
    assert {node: found[f"`{node}`"] for node in HOME} == {
        node: f"`{perms}`" for node, perms in HOME.items()
    }


def test_compact_tables_say_the_same():
    for name in keys.TABLES:
        whole, short = keys.table(name), keys.compact(keys.table(name))
        assert short.column("key") == whole.column("key")
        for text, kind, meaning, absent in zip(
            short.column("type and meaning"),
            whole.column("type"),
            whole.column("meaning"),
            whole.column("if absent"),
            strict=True,
        ):
            assert text.startswith(f"{kind}: {meaning}" if kind else meaning)
            assert ("Absent: " + absent in text) if absent else "Absent" not in text


def test_no_words_are_left_of_a_key_that_is_gone():
    for section, words in texts.sections()["key"].items():
        if section == "home":
            known = {
                node.strip("`").removeprefix("~").lstrip("/")
                for node in keys.home_table().column("node")
            }
        else:
            kind, end = section.split("-")
            known = {name.removeprefix("queue-N/") for name in keys.heard(kind, end)}
        # hotplug-error: a script that fails, which none does here
        assert set(words) - known <= {"hotplug-error"}, section


def test_a_table_that_there_is_not_is_refused():
    with pytest.raises(
        UnknownError, match="unknown table of keys 'netbsd': expected one of vif-toolstack"
    ):
        keys.table("netbsd")
