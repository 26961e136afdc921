"""A device in the store: its two directories, the toolstack's own copy, add and remove.

libxl_device.c. The frontend's directory belongs to the guest, the backend's to its domain;
the toolstack trusts only `/libxl/<domid>/device`, which the guest cannot write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.errors import StoreError
from xenpv.host import vdev
from xenpv.host.xs import XsHandle

if TYPE_CHECKING:
    from xenpv.host.diskspec import DiskSpec
    from xenpv.host.vifspec import VifSpec

INIT_WAIT = "2"
CLOSING = "5"
CLOSED = "6"

# libxl__parse_backend_path
BACKEND_PATH: Final = (
    r"/local/domain/([0-9]{1,5})/backend/([a-z0-9_]+)/([0-9]{1,5})/([0-9]{1,10})\Z"
)


def mac_text(mac: bytes) -> str:
    """00:16:3e:01:02:03"""
    return ":".join(f"{byte:02x}" for byte in mac)


@attrs.frozen(kw_only=True)
class DeviceKey:
    """libxl__device: which device it is, and where its three directories are."""

    kind: str
    devid: int
    domid: int
    backend_domid: int
    backend_kind: str = attrs.field()

    @backend_kind.default
    def _backend_kind(self) -> str:
        return self.kind

    @property
    def frontend_path(self) -> str:
        home = f"/local/domain/{self.domid}"
        if (self.kind, self.devid) == ("console", 0):
            return f"{home}/console"
        return f"{home}/device/{self.kind}/{self.devid}"

    @property
    def backend_path(self) -> str:
        return f"/local/domain/{self.backend_domid}/{self.xenbus_path}"

    @property
    def xenbus_path(self) -> str:
        """That of the backend, as its own domain names it."""
        return f"backend/{self.backend_kind}/{self.domid}/{self.devid}"

    @property
    def libxl_path(self) -> str:
        return f"/libxl/{self.domid}/device/{self.kind}/{self.devid}"

    def destroy(self, xs: XsHandle) -> None:
        """libxl__device_destroy: the directories, with parents that are empty without them.

        A driver domain has removed its own by then, or is too late; the parents are not its.
        """

        def clean(t: int) -> None:
            xs.rm_empty_parents(self.frontend_path, f"/local/domain/{self.domid}", t)
            xs.rm_empty_parents(self.libxl_path, f"/libxl/{self.domid}", t)
            # dom0 keeps its `backend`, which is there for more than devices.
            home = f"/local/domain/{self.backend_domid}"
            root = home if self.backend_domid else f"{home}/backend"
            xs.rm_empty_parents(self.backend_path, root, t)

        xs.transaction(clean)


def stored(xs: XsHandle, domid: int) -> list[DeviceKey]:
    """The devices of a domain that the toolstack's own copy lists, in its order."""
    found = []
    home = f"/libxl/{domid}/device"
    for kind in xs.directory(home):
        for name in xs.directory(f"{home}/{kind}"):
            match = re.match(BACKEND_PATH, xs.read(f"{home}/{kind}/{name}/backend") or "")
            if match is not None and name.isdecimal():
                key = DeviceKey(
                    kind=kind,
                    devid=int(name),
                    domid=domid,
                    backend_domid=int(match[1]),
                    backend_kind=match[2],
                )
                found.append(key)
    return found


def next_devid(xs: XsHandle, domid: int, kind: str) -> int:
    """libxl__device_nextid: the last that is listed, and one."""
    names = xs.directory(f"/libxl/{domid}/device/{kind}")
    return int(names[-1]) + 1 if names and names[-1].isdecimal() else 0


@attrs.frozen(kw_only=True)
class Device(DeviceKey):
    """What `add` writes: `back` and `front` keys, `front_ro` those that the guest only reads."""

    back: Mapping[str, str]
    front: Mapping[str, str]
    front_ro: Mapping[str, str] = attrs.field(factory=dict)

    def add(self, xs: XsHandle) -> None:
        """One transaction; StoreError(EEXIST) if the toolstack has such a device already."""
        xs.transaction(lambda t: self._write(xs, t))

    def _write(self, xs: XsHandle, t: int) -> None:
        if xs.read(self.libxl_path, t) is not None:
            raise StoreError("EEXIST", f"device {self.kind} {self.devid} of domain {self.domid}")
        guest, backend = f"n{self.domid}", f"n{self.backend_domid}"
        xs.rm(self.frontend_path, t)
        xs.rm(self.backend_path, t)
        xs.write(self.libxl_path, "", t)
        xs.write(self.frontend_path, "", t)
        xs.set_permissions(self.frontend_path, [guest, f"r{self.backend_domid}"], t)
        xs.write(self.backend_path, "", t)
        xs.set_permissions(self.backend_path, [backend, f"r{self.domid}"], t)
        ends = {"frontend": self.frontend_path, "backend": self.backend_path}
        xs.write_all(self.libxl_path, ends, t)
        xs.write_all(self.frontend_path, {"backend": self.backend_path, **self.front}, t)
        for key, value in self.front_ro.items():
            xs.write(f"{self.frontend_path}/{key}", value, t)
            xs.set_permissions(f"{self.frontend_path}/{key}", ["n0", f"r{self.domid}"], t)
        xs.write_all(self.backend_path, {"frontend": self.frontend_path, **self.back}, t)
        xs.write_all(self.libxl_path, self.back, t)


def vbd(
    spec: DiskSpec,
    domid: int,
    *,
    backend_domid: int = 0,
    removable: bool = False,
    pv: bool = False,
    blkback: str = "linux",
) -> Device:
    """A disk; `pv`: of a PV domain. `blkback`: who serves one that does not say it.

    ConfigError for a vdev that is none, or a backend that cannot serve it.
    """
    from xenpv.host import diskbackend
    from xenpv.host.diskspec import DiskBackend

    backend, profile = diskbackend.chosen(spec, blkback)
    number = spec.number
    device_type = "cdrom" if spec.is_cdrom else "disk"
    discard = spec.readwrite if spec.discard is None else spec.discard
    back = {
        "frontend-id": str(domid),
        "online": "1",
        "removable": str(int(removable or spec.removable)),
        "bootable": "1",
        "state": "1",
        "dev": spec.vdev or vdev.name(number),
        "type": backend.value,
        "mode": "w" if spec.readwrite else "r",
        "device-type": device_type,
        "params": diskbackend.params(spec, backend),
        "discard-enable": str(int(discard)),
        "specification": spec.specification.value,
    }
    if backend is not DiskBackend.QDISK and profile not in diskbackend.OWN_SCRIPT:
        back["script"] = spec.script or "/etc/xen/scripts/block"
    if spec.direct_io_safe:
        back["direct-io-safe"] = "1"
    return Device(
        kind="vbd",
        backend_kind=diskbackend.DIRECTORIES[backend],
        devid=number,
        domid=domid,
        backend_domid=backend_domid,
        back=back,
        front={
            "backend-id": str(backend_domid),
            "state": "1",
            "virtual-device": str(number),
            "device-type": device_type,
            "trusted": str(int(spec.trusted)),
            **({"protocol": "x86_64-abi"} if pv else {}),
        },
    )


def vif(spec: VifSpec, domid: int, *, hvm: bool, backend_domid: int = 0) -> Device:
    """A network interface that netback serves; its devid and mac are set by now."""
    from xenpv.host.vifspec import NicType

    assert spec.devid is not None
    assert spec.mac is not None
    nic_type = spec.type or (NicType.VIF_IOEMU if hvm else NicType.VIF)
    mtu = 1500 if spec.mtu is None else spec.mtu
    back = {
        "script": spec.script or "/etc/xen/scripts/vif-bridge",
        "mac": mac_text(spec.mac),
        "bridge": spec.bridge,
        "handle": str(spec.devid),
        "type": nic_type.value,
        "hotplug-status": "",
        "frontend-id": str(domid),
        "online": "1",
        "state": "1",
    }
    optional = {
        "vifname": spec.vifname,
        "ip": spec.ip,
        "gatewaydev": spec.gatewaydev,
        "vlan": spec.vlan,
        "forwarddev": spec.forwarddev,
    }
    back |= {key: text for key, text in optional.items() if text}
    if spec.rate is not None:
        back["rate"] = f"{spec.rate[0]},{spec.rate[1]}"
    if mtu != 1500:
        back["mtu"] = str(mtu)
    return Device(
        kind="vif",
        devid=spec.devid,
        domid=domid,
        backend_domid=backend_domid,
        back=back,
        front={
            "backend-id": str(backend_domid),
            "state": "1",
            "handle": str(spec.devid),
            "mac": mac_text(spec.mac),
            "trusted": str(int(spec.trusted)),
        },
        front_ro={"mtu": str(mtu)},
    )
