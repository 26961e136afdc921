"""xenpv.host.config and vifspec against the real xl, whose dry run prints what it read.

tests/peers/xl.c stands in for the host that xl looks for first.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.host.xl_vectors import CORPUS
from tests.peers import need
from xenpv.errors import ConfigError
from xenpv.host import config
from xenpv.host.config import DomainConfig
from xenpv.host.diskspec import DiskSpec
from xenpv.host.vifspec import VifSpec

pytestmark = pytest.mark.peers

XL = "/usr/lib/xen-4.17/bin/xl"
DEFAULT_KIB = 32 * 1024


@pytest.fixture(scope="session")
def xl(tmp_path_factory):
    need(XL, "xen-utils-4.17")
    directory = tmp_path_factory.mktemp("xl")
    library, path = directory / "xl.so", directory / "guest.cfg"
    source = Path(__file__).with_name("xl.c")
    command = [need("cc", "gcc"), "-shared", "-fPIC", "-Wall", "-Werror", source, "-o", library]
    subprocess.run(command, check=True)

    def dry_run(text: str) -> tuple[dict | None, str]:
        """What xl makes of a configuration (None: refused) and what it says."""
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        done = subprocess.run(
            [XL, "-N", "create", "-n", path],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "LD_PRELOAD": str(library), "LC_ALL": "C"},
        )
        assert done.returncode >= 0, f"signal {-done.returncode}"
        return (json.loads(done.stdout) if done.returncode == 0 else None), done.stderr

    return dry_run


def domain_of_xl(report: dict) -> dict[str, object]:
    info, build = report["c_info"], report["b_info"]
    hvm = build.get("type.hvm", {})
    maxmem = build.get("max_memkb", DEFAULT_KIB)
    vcpus = len(build["avail_vcpus"]) if "avail_vcpus" in build else 1
    return {
        "name": info["name"],
        "type": info["type"],
        "maxmem_kib": maxmem,
        "memory_kib": build.get("target_memkb", maxmem),
        "vcpus": vcpus,
        "maxvcpus": build.get("max_vcpus", vcpus),
        "localtime": build.get("localtime") == "True",
        "rtc_timeoffset": build.get("rtc_timeoffset", 0),
        "driver_domain": info.get("driver_domain") == "True",
        "nomigrate": build.get("disable_migrate") == "True",
        "xend_suspend_evtchn_compat": info.get("xend_suspend_evtchn_compat") == "True",
        "acpi": build.get("acpi", "True") == "True",
        "acpi_s3": hvm.get("acpi_s3", "True") == "True",
        "acpi_s4": hvm.get("acpi_s4", "True") == "True",
        "acpi_laptop_slate": hvm.get("acpi_laptop_slate") == "True",
        "max_event_channels": build.get("event_channels", 1023),
        "max_grant_frames": build.get("max_grant_frames", 64),
        "max_maptrack_frames": build.get("max_maptrack_frames", 1024),
        "max_grant_version": build.get("max_grant_version", 2),
        "actions": [
            # xl's word for what libxl calls restart_rename is rename-restart.
            report.get(key, "destroy").replace("restart_rename", "rename-restart").replace("_", "-")
            for key in config._ACTIONS
        ],
        "disks": [disk_of_xl(disk) for disk in report.get("disks", [])],
        "vifs": [vif_of_xl(vif) for vif in report.get("nics", [])],
    }


def domain_of_ours(domain: DomainConfig) -> dict[str, object]:
    same = ["name", "vcpus", "maxvcpus", *config._FLAGS]
    same += ["max_event_channels", "max_grant_frames", "max_maptrack_frames", "max_grant_version"]
    return {
        **{key: getattr(domain, key) for key in same},
        "type": domain.type.value,
        "maxmem_kib": domain.maxmem_mib * 1024,
        "memory_kib": domain.memory_mib * 1024,
        "rtc_timeoffset": domain.rtc_timeoffset & 0xFFFFFFFF,
        "actions": [getattr(domain, key).value for key in config._ACTIONS],
        "disks": [disk_of_ours(disk) for disk in domain.disks],
        "vifs": [vif_of_ours(vif) for vif in domain.vifs],
    }


def disk_of_xl(disk: dict) -> tuple:
    keys = ("backend_domname", "pdev_path", "vdev", "backend", "format", "script")
    return (*(disk.get(key, "") for key in keys), *(disk.get(key, 0) for key in DISK_FLAGS))


DISK_FLAGS = ("readwrite", "removable", "is_cdrom")


def disk_of_ours(disk: DiskSpec) -> tuple:
    backend = disk.backendtype.value if disk.backendtype else ""
    texts = (disk.backend, disk.target, disk.vdev, backend, disk.format.value, disk.script)
    return (*texts, *(int(getattr(disk, key)) for key in DISK_FLAGS))


# VifSpec's field: xl's name.
VIF_TEXTS = {
    "backend": "backend_domname",
    "model": "model",
    "ip": "ip",
    "script": "script",
    "vifname": "ifname",
    "gatewaydev": "gatewaydev",
    "forwarddev": "coloft_forwarddev",
}


def vif_of_xl(vif: dict) -> dict[str, object]:
    rate = None
    if "rate_interval_usecs" in vif:
        rate = (vif.get("rate_bytes_per_interval", 0), vif["rate_interval_usecs"])
    return {
        **{ours: vif.get(theirs, "") for ours, theirs in VIF_TEXTS.items()},
        "bridge": vif.get("bridge", "xenbr0"),
        "devid": vif.get("devid"),
        "mac": vif.get("mac"),
        "type": vif.get("nictype"),
        "mtu": vif.get("mtu"),
        "rate": rate,
        "trusted": vif.get("trusted", "True") == "True",
    }


def vif_of_ours(vif: VifSpec) -> dict[str, object]:
    return {
        **{key: getattr(vif, key) for key in VIF_TEXTS},
        "bridge": vif.bridge,
        "devid": vif.devid,
        "mac": vif.mac.hex(":") if vif.mac else None,
        "type": vif.type.value if vif.type else None,
        "mtu": vif.mtu,
        "rate": vif.rate,
        "trusted": vif.trusted,
    }


# Without a type xl makes a pv domain, which must boot something.
HEAD = 'name="a"\ntype="hvm"\nxenpv_personality="linux"\n'
DOMAINS = [
    "",
    'name="b"\nname+="c"',
    "memory=0x80",
    'memory="128"',
    'memory="12x"',
    "memory=[1]",
    "memory+=64",
    "maxmem=64",
    "memory=64\nmaxmem=128",
    'memory="12x"\nmaxmem=64',
    "vcpus=2",
    "vcpus=2\nmaxvcpus=4",
    "maxvcpus=4",
    "vcpus=0",
    "a=1;;b=2;",
    "a=[[1,2],[3]]",
    'disk=["file:/x,xvda,w",]',
    'disk=[ # c\n "file:/x,xvda,w" # d\n]',
    'disk+=["file:/y,xvdb,w"]',
    'disk=["file:/x,xvda,w", [], "file:/y,xvdb,w"]',
    'disk="file:/x,xvda,w"',
    'disk=["/x,qcow2,xvda,r,backend=d,backendtype=qdisk", "iscsi:t,xvdb", ",hdc:cdrom,r"]',
    "vif=['']",
    'vif="bridge=a"',
    'vif=["", [], "bridge=b"]',
    "vif=['mac=00:16:3e:4f:00:01,bridge=b,type=ioemu,model=e1000,rate=100Mb/s@20ms', 'mtu=9000']",
    "vif=['', 'devid=7', '']",
    'on_crash="coredump-restart"\non_reboot="rename-restart"\non_watchdog="soft-reset"',
    'on_poweroff="preserve"\non_soft_reset="destroy"\non_crash=["x"]',
    'localtime=1\nrtc_timeoffset="-3600"\nacpi=0',
    'localtime="yes"\nrtc_timeoffset="x"\nacpi=[]',
    "acpi_s3=0\nacpi_s4=0\nacpi_laptop_slate=1",
    "driver_domain=1\nnomigrate=2\nxend_suspend_evtchn_compat=1",
    "max_event_channels=10\nmax_grant_frames=20\nmax_maptrack_frames=30\nmax_grant_version=1",
    'max_event_channels="x"',
    "max_event_channels=0",
    'type=""',
    'type="h"',
    'type="p"\nbootloader="b"',
    'type="pvh"\nkernel="/k"',
    'type=""\nbuilder="hvm"',
    'unknown="key"',
    'uuid="6B8E6C1E-5b0c-4a8e-9f1d-2b1c9d3e4f50"',
]


@pytest.mark.parametrize("text", DOMAINS, ids=repr)
def test_makes_the_same_domain(xl, text):
    report, said = xl(HEAD + text)
    assert report is not None, said
    domain = config.parse(HEAD + text)
    assert domain_of_ours(domain) == domain_of_xl(report)
    if domain.uuid is not None:
        assert domain.uuid == report["c_info"]["uuid"]


@pytest.mark.parametrize("name", ["windows.cfg", "driver_domain.cfg", "linux.cfg"])
def test_makes_the_same_domain_of_a_file(xl, name):
    text = (CORPUS / name).read_text(encoding="utf-8")
    report, said = xl(text)
    assert report is not None, said
    assert domain_of_ours(config.parse(text)) == domain_of_xl(report)


@pytest.mark.parametrize(
    "text",
    [
        "a=1 b=2",
        "name=[1]",
        'type="vm"',
        'builder="kvm"',
        'builder="generic"',
        'type="pv"\nbuilder="hvm"',
        'uuid="1234"',
        'uuid="6b8e6c1e5b0c4a8e9f1d2b1c9d3e4f50"',
        "vcpus=4\nmaxvcpus=2",
        'on_crash="explode"',
        'on_crash="rename_restart"',
        'max_grant_frames="x"',
        "max_maptrack_frames=[1]",
        "max_grant_version+=1",
        'vga="matrox"',
        'disk=["/x,xvda,w"]',
        "disk=[1]",
        'vif=["rate=x"]',
        'vif=["devid=x"]',
        'vif=["mtu=x"]',
        "# the end",
    ],
)
def test_refuses_the_same_configurations(xl, text):
    report, _ = xl(HEAD + text)
    assert report is None
    with pytest.raises(ConfigError):
        config.parse(HEAD + text)


# Not the bad macs after which xl reads beyond the end of the item.
VIFS = [
    *("", ",", " bridge=b", "bridge=b ", "bridge=a,bridge=b", "bridge =b", "bridge= b", "foo"),
    *("foo=bar,bridge=b", "type=pv,bridge=b", "type=vif", "type=ioemu", "type=ioemu,type=pv"),
    *(
        "mac=00:16:3e:01:02:03",
        "mac=0-16-3E-1-2-3",
        "mac=0x0:0x16:+3e: 1:2:3",
        "mac=00.16.3e.1.2.3",
    ),
    *("mac=00:16:3e:01:02:03 and more", "mac=00:16:3e:01:02:103", "mac=00:zz:00:00:00:00"),
    *("mac=zz", "mac=00:00:00:00:00:00", "mac=1:2:3:4:5:6,mac=zz", "mac=1:2:3:4:5:6,mac=7:zz"),
    *("trusted", "untrusted", "trusted,untrusted", "trusted=1", " untrusted"),
    *("netdev=e", "gatewaydev=g,forwarddev=f", "ip=10.0.0.1 10.0.0.2,script=s,backend=d,model=m"),
    *("vifname=v", "devid=5", "mtu=1400", "rate=8Kb/s", "rate=10MB/s@20u", "bridge=a=b", "=", "="),
    *("mac=1:2:3:4:5:6:7", "MAC=1:2:3:4:5:6", "mac"),
]


@pytest.mark.parametrize("spec", VIFS, ids=repr)
def test_reads_the_same_vif_when_not_strict(xl, spec):
    report, said = xl(f'{HEAD}vif=["{spec}"]')
    assert report is not None, said
    theirs = vif_of_xl(report["nics"][0])
    ours = VifSpec.parse(spec, strict=False)
    devid = {"devid": 0 if ours.devid is None else ours.devid}
    assert {**vif_of_ours(ours), **devid} == theirs
    # xl reports on standard error what it ignores.
    ignored = [warning for warning in ours.warnings if "ignored" in warning]
    assert len(ignored) == said.count("unrecognized argument") + said.count("Invalid parameter")
