"""Who serves a disk, and where its backend is made (libxl__device_disk_set_backend).

xl's `backendtype` chooses; without it the toolstack does, by the format. A backend that is
xenpv's to simulate otherwise (Disk(profile=), Platform(blkback=)) is at home in one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from xenpv.host.diskspec import DiskBackend, DiskFormat, DiskSpec

# Below backend/: the kernel's, QEMU's, and the one of blktap's tapback that XenServer has.
DIRECTORIES: Final[Mapping[DiskBackend, str]] = {
    DiskBackend.PHY: "vbd",
    DiskBackend.QDISK: "qdisk",
    DiskBackend.TAP: "vbd3",
}
# The backends that are simulated (back.blkprofile).
OF_PROFILE: Final[Mapping[str, DiskBackend]] = {
    "linux": DiskBackend.PHY,
    "mirage": DiskBackend.PHY,
    "qemu": DiskBackend.QDISK,
    "tapdisk": DiskBackend.TAP,
}
SERVED: Final[Mapping[DiskBackend, tuple[DiskFormat, ...]]] = {
    DiskBackend.PHY: (DiskFormat.RAW, DiskFormat.EMPTY),
    DiskBackend.QDISK: tuple(DiskFormat),
    DiskBackend.TAP: (DiskFormat.RAW, DiskFormat.VHD),
}
# libxl__device_disk_string_of_format
FORMATS: Final[Mapping[DiskFormat, str]] = {
    DiskFormat.RAW: "aio",
    DiskFormat.QCOW: "qcow",
    DiskFormat.QCOW2: "qcow2",
    DiskFormat.VHD: "vhd",
    DiskFormat.QED: "qed",
    DiskFormat.EMPTY: "",
}
OWN_SCRIPT: Final = ("mirage",)  # a unikernel opens its disk itself


def chosen(spec: DiskSpec, default: str = "linux") -> tuple[DiskBackend, str]:
    """The backend of a disk, and which is simulated. `default`: the platform's profile.

    ConfigError: what was asked for cannot serve that format, or with a script.
    """
    if spec.profile and spec.profile not in OF_PROFILE:
        raise spec.position.error(
            f"disk {spec.vdev}: profile {spec.profile}: expected one of {', '.join(OF_PROFILE)}"
        )
    if spec.backendtype is not None:
        _check(spec, spec.backendtype, f"backendtype={spec.backendtype.value}")
        wanted = spec.profile or default
        if spec.profile and OF_PROFILE[spec.profile] is not spec.backendtype:
            raise spec.position.error(
                f"disk {spec.vdev}: profile {spec.profile} is no backendtype="
                f"{spec.backendtype.value}"
            )
        return spec.backendtype, wanted if OF_PROFILE[wanted] is spec.backendtype else ""
    if spec.profile:
        _check(spec, OF_PROFILE[spec.profile], f"profile {spec.profile}")
        return OF_PROFILE[spec.profile], spec.profile
    own = OF_PROFILE[default]
    if not _unsuitable(spec, own):
        return own, default
    phy = not _unsuitable(spec, DiskBackend.PHY)
    return DiskBackend.PHY if phy else DiskBackend.QDISK, ""


def _unsuitable(spec: DiskSpec, backend: DiskBackend) -> str:
    """disk_try_backend: why not, or nothing."""
    if backend not in SERVED:
        return "nothing here serves it"
    if spec.format not in SERVED[backend]:
        return f"unsuitable due to format {spec.format.value}"
    if spec.script and backend is not DiskBackend.PHY:
        return f"unsuitable due to script={spec.script}"
    return ""


def _check(spec: DiskSpec, backend: DiskBackend, asked: str) -> None:
    why = _unsuitable(spec, backend)
    if why:
        known = ", ".join(one.value for one in SERVED if not _unsuitable(spec, one)) or "none"
        raise spec.position.error(f"disk {spec.vdev}: {asked}: {why}; suitable: {known}")


def params(spec: DiskSpec, backend: DiskBackend) -> str:
    """The key of that name: the target, after its format where that is not the kernel's."""
    if backend is DiskBackend.PHY:
        return spec.target
    return f"{FORMATS[spec.format]}:{spec.target}"
