"""docs/reference/agent.md: its tables are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from xenpv.host.image import MemoryImage
from xenpv.iface.agent import Agent
from xenpv.iface.manage import SYSRQ_KEYS
from xenpv.iface.operatingsystem import Addresses, OperatingSystem, Volume
from xenpv.iface.shutdown import REQUESTS
from xenpv.iface.timesync import PARAMETERS, TIME_SYNC_MODE
from xenpv.platform import Disk, Platform, Vif

TEXT = (Path(__file__).parents[2] / "docs/reference/agent.md").read_text(encoding="utf-8")
MAC = "00:16:3e:00:00:01"


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose header begins with that cell."""
    table = TEXT[TEXT.index(f"| {first} |") :].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def test_the_table_of_requests() -> None:
    assert [(row[0], row[1].strip("`"), row[2]) for row in rows("personality")] == [
        (personality, value, act.value)
        for personality, requests in REQUESTS.items()
        for value, act in requests.acts.items()
    ]


def test_the_table_of_feature_keys() -> None:
    said = {row[0]: (tuple(re.findall("`(.*?)`", row[1])), row[2]) for row in rows("agent")}
    assert said == {
        personality: (
            requests.features,
            "in a transaction" if requests.in_transaction else "by a write",
        )
        for personality, requests in REQUESTS.items()
    }


def test_the_table_of_sysrq_keys() -> None:
    assert {row[0].strip("`"): row[1] for row in rows("key")} == {
        key: done.message for key, done in SYSRQ_KEYS.items()
    }
    ends = {key: int(one.reason) for key, one in SYSRQ_KEYS.items() if one.reason is not None}
    assert ends == {"b": 1, "c": 3, "o": 0}


def test_the_page_names_what_a_user_may_change() -> None:
    assert PARAMETERS in TEXT
    assert TIME_SYNC_MODE in TEXT
    missing = [one.name for one in attrs.fields(OperatingSystem) if f"{one.name}`" not in TEXT]
    assert missing == []


def test_the_keys_of_xe_daemon_are_those_it_writes() -> None:
    with Platform(seed=1) as xen:
        guest = xen.create(
            name="linux",
            personality="linux",
            disks=[Disk(MemoryImage(bytearray(1 << 20)))],
            vifs=[Vif()],
        )
        home, store = f"/local/domain/{guest.domid}", xen.toolstack.xs
        store.write(f"{home}/unique-domain-id", "1")
        for path in ("xenserver/device/net-sriov-vf/0/mac", "xenserver/attr"):
            store.write(f"{home}/{path}", MAC)
            store.set_permissions(f"{home}/{path}", [f"n{guest.domid}"])
        both = Addresses(ipv4=("10.0.0.2",), ipv6=("fe80::2",))
        guest.os.addresses[0] = guest.os.sriov[MAC] = both
        guest.os.volumes.append(Volume(name="root", size=2, free=1, extents=("xvda",)))
        guest.start()
        xen.advance(1)
        assert guest.bus is not None
        agent = guest.bus.pdos["IFACE"].driver
        assert isinstance(agent, Agent)
        assert agent.daemon is not None
        assert agent.daemon.running
        reported = [key for key, _value in agent.daemon._report(0)]
        found = {re.sub(r"/\d+", "/N", key) for key in [*reported, "data/updated"]}
    assert found == {key for row in rows("keys") for key in re.findall("`(.*?)`", row[0])}
