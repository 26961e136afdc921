"""xen_version (hypercall 17): what a domain may know about the Xen below it.

Layouts are those of public/version.h; what is denied to whom is xsm_xen_version's default
(xen/include/xsm/dummy.h).
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, ENOBUFS, ENODATA, ENOSYS, EPERM
from typing import TYPE_CHECKING, Any, Final

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.errors import HypercallError
from xenpv.xen.arena import PAGE_SIZE

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

COMMANDLINE_LEN: Final = 1024  # xen_commandline_t
HANDLE_LEN: Final = 16  # xen_domain_handle_t
DENIED: Final = "<denied>"

# What every translated guest sees (XENFEAT_*): 0x1D2705.
FEATURES_HVM: Final = sum(
    1 << bit
    for bit in (
        lib.XENFEAT_writable_page_tables,
        lib.XENFEAT_auto_translated_physmap,
        lib.XENFEAT_hvm_callback_vector,
        lib.XENFEAT_hvm_safe_pvclock,
        lib.XENFEAT_hvm_pirqs,
        lib.XENFEAT_memory_op_vnode_supported,
        lib.XENFEAT_not_direct_mapped,
        lib.XENFEAT_runstate_phys_area,
        lib.XENFEAT_vcpu_time_phys_area,
        lib.XENFEAT_dm_msix_all_writes,
    )
)
FEATURE_DOM0: Final = 1 << lib.XENFEAT_dom0

NAMES: Final = {
    int(getattr(lib, name)): name
    for name in dir(lib)
    if name.startswith("XENVER_")
}  # fmt: skip


@attrs.frozen(kw_only=True)
class XenVersion:
    """One build of Xen. Strings are truncated to their fields, which keep their final NUL."""

    major: int = 4
    minor: int = 22
    extraversion: str = ".0"
    compiler: str = "gcc (Debian 14.2.0-19) 14.2.0"
    compile_by: str = "xenpv"
    compile_domain: str = "localdomain"
    compile_date: str = "Sat Aug  1 00:00:00 UTC 2026"
    capabilities: str = "xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 "
    changeset: str = ""
    commandline: str = ""
    build_id: bytes = b""


XEN: Final = XenVersion()


def _field(text: str, size: int) -> bytes:
    return text.encode()[: size - 1].ljust(size, b"\0")


def _strings(of: str, **fields: str) -> bytes:
    """A struct of strings, as bytes."""
    struct = ffi.new(f"struct {of} *")
    for name, text in fields.items():
        size = ffi.sizeof(getattr(struct, name))
        ffi.memmove(getattr(struct, name), _field(text, size), size)
    return bytes(ffi.buffer(struct))


def _compile_info(version: XenVersion) -> bytes:
    return _strings(
        "xen_compile_info",
        compiler=version.compiler,
        compile_by=version.compile_by,
        compile_domain=version.compile_domain,
        compile_date=version.compile_date,
    )


def _platform_parameters(_version: XenVersion) -> bytes:
    """virt_start: 0 for who has no part of its address space taken by Xen."""
    return bytes(ffi.buffer(ffi.new("struct xen_platform_parameters *")))


# Fixed layouts that every domain may read.
_FIXED: Final[dict[int, Callable[[XenVersion], bytes]]] = {
    lib.XENVER_extraversion: lambda v: _field(v.extraversion, lib.XEN_EXTRAVERSION_LEN),
    lib.XENVER_compile_info: _compile_info,
    lib.XENVER_capabilities: lambda v: _field(v.capabilities, lib.XEN_CAPABILITIES_INFO_LEN),
    lib.XENVER_changeset: lambda v: _field(v.changeset, lib.XEN_CHANGESET_INFO_LEN),
    lib.XENVER_platform_parameters: _platform_parameters,
}
# struct xen_varbuf: without a length, the size is asked for.
_VARIABLE: Final[dict[int, Callable[[XenVersion], bytes]]] = {
    lib.XENVER_build_id: lambda v: v.build_id,
    lib.XENVER_extraversion2: lambda v: v.extraversion.encode(),
    lib.XENVER_capabilities2: lambda v: v.capabilities.encode(),
    lib.XENVER_changeset2: lambda v: v.changeset.encode(),
    lib.XENVER_commandline2: lambda v: v.commandline.encode(),
}
_PRIVILEGED: Final = (lib.XENVER_build_id, lib.XENVER_commandline2)


def xen_version(domain: Domain, command: int, argument: int | None = None) -> int | bytes:
    """The hypercall, made by `domain`.

    An int is what the call returns (XENVER_version, XENVER_pagesize, the size of a variable
    buffer when `argument` is None); bytes are what it writes. `argument` is submap_idx of
    XENVER_get_features and len of the variable ones, in bytes.

    HypercallError: ENOSYS; EINVAL for a submap but 0, an argument to pagesize, or a len of
    0; ENOBUFS for a len too small; EPERM for build_id and commandline2 unless privileged;
    ENODATA if Xen was built without an id.
    """
    version = domain.xen

    def fail(errno: int, reason: str) -> HypercallError:
        operation = NAMES.get(command, f"xen_version {command}")
        arguments: dict[str, Any] = {"cmd": command, "arg": argument}
        return HypercallError(errno, reason, operation=operation, arguments=arguments)

    if command == lib.XENVER_version:
        return version.major << 16 | version.minor
    if command in _FIXED:
        return _FIXED[command](version)
    if command == lib.XENVER_get_features:
        if argument:
            raise fail(EINVAL, f"only submap 0 of {lib.XENFEAT_NR_SUBMAPS} exists")
        return _features(domain)
    if command == lib.XENVER_pagesize:
        if argument is not None:
            raise fail(EINVAL, "arg must be NULL")
        return PAGE_SIZE
    if command == lib.XENVER_guest_handle:
        return domain.handle
    if command == lib.XENVER_commandline:
        return _field(version.commandline if domain.is_control else DENIED, COMMANDLINE_LEN)
    if command not in _VARIABLE:
        raise fail(ENOSYS, "no such command")
    if command in _PRIVILEGED and not domain.is_control:
        raise fail(EPERM, f"domain {domain.domid} is no control domain")
    data = _VARIABLE[command](version)
    if command == lib.XENVER_build_id and not data:
        raise fail(ENODATA, "this Xen has no build id")
    if argument is None:
        return len(data)
    if argument == 0:
        raise fail(EINVAL, "a buffer without room")
    if len(data) > argument:
        raise fail(ENOBUFS, f"{len(data)} bytes do not fit")
    return data


def _features(domain: Domain) -> bytes:
    info = ffi.new("struct xen_feature_info *")
    info.submap = FEATURES_HVM | (FEATURE_DOM0 if domain.is_control else 0)
    return bytes(ffi.buffer(info))
