"""What Xen keeps of a suspended domain beside the contents of its pages, as plain data.

It is what a toolstack saves and puts into a new domain that has its vcpus and its max_mem, and
nothing else: where there is RAM, the HVM parameters that libxc carries over, which vcpus are up,
the clock's offset, and what the domain's kernel (xen.memory) knows of free pages. Grant table,
event channels and everything that was registered with Xen are not carried over, as in Xen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from xenpv.abi._kernel import lib
from xenpv.abi.hvm import HVM_PARAM
from xenpv.errors import LocalProtocolError
from xenpv.xen.memory import CONSOLE_PFN, PFN_END, XENSTORE_PFN, PagePool

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

P2M_RAM: Final[int] = lib.P2M_RAM
# Of the parameters in write_hvm_params of libxc those that this Xen has; the pages and ports of
# store and console are the new domain's own.
CARRIED: Final = (
    HVM_PARAM.VM86_TSS_SIZED,
    HVM_PARAM.ACPI_IOPORTS_LOCATION,
    HVM_PARAM.VIRIDIAN,
    HVM_PARAM.IDENT_PT,
    HVM_PARAM.VM_GENERATION_ID_ADDR,
    HVM_PARAM.X87_FIP_WIDTH,
    HVM_PARAM.MCA_CAP,
)


def ram(domain: Domain) -> Iterator[tuple[int, int]]:
    """Runs of pfns with RAM, touched or not: first and number, ascending."""
    kernel = domain.kernel
    pfn, end = 0, int(lib.domain_max_gpfn(kernel)) + 1
    while pfn < end:
        count = int(lib.p2m_run(kernel, pfn, end - pfn))
        if lib.p2m_type(kernel, pfn) == P2M_RAM:
            yield pfn, count
        pfn += count


def save(domain: Domain) -> dict[str, Any]:
    """Of a domain that does not run: for json.dumps, and for `restore`."""
    params = domain.hvm.params
    return {
        "vcpus": [[vcpu.initialised, vcpu.down] for vcpu in domain.vcpu],
        "processors": domain.processors,
        "is_32bit": domain.is_32bit,
        "ram": [list(run) for run in ram(domain)],
        "pages": domain.pages.save(),
        "holes": domain.holes.save(),
        "hvm_params": {param.name: params[param] for param in CARRIED if params[param]},
        "time_offset_seconds": domain.time_offset_seconds,
        "tsc": domain.rdtsc(),
    }


def restore(domain: Domain, data: Mapping[str, Any]) -> None:
    """Into a domain that was made with equally many vcpus and has no memory yet.

    LocalProtocolError for what no domain can be, HypercallError(ENOMEM). The domain is good for
    nothing then.
    """
    vcpus = _list(data, "vcpus")
    if len(vcpus) != domain.vcpus:
        raise LocalProtocolError(f"vcpus: the domain has {domain.vcpus}, not {len(vcpus)}")
    processors = data.get("processors")
    if type(processors) is not int or not 0 <= processors <= domain.vcpus:
        raise LocalProtocolError(f"processors: {processors!r} are none of {domain.vcpus} vcpus")
    domain.set_processors(processors)
    if data.get("is_32bit") is not domain.is_32bit:
        raise LocalProtocolError("is_32bit: the domain's shared_info is of the other width")
    _populate(domain, data)
    domain.pages = PagePool.restored(data.get("pages"), "pages")
    domain.holes = PagePool.restored(data.get("holes"), "holes")
    params = data.get("hvm_params")
    if not isinstance(params, Mapping):
        raise LocalProtocolError("hvm_params: expected them by name")
    names = {param.name: param for param in CARRIED}
    for name, value in params.items():
        if name not in names or type(value) is not int or not 0 <= value < 1 << 64:
            raise LocalProtocolError(f"hvm_params: {name} is not carried over, or no number")
        domain.hvm.params[names[name]] = value
    offset = data.get("time_offset_seconds")
    if type(offset) is not int or abs(offset) >= 1 << 62:
        raise LocalProtocolError("time_offset_seconds: expected a number of seconds")
    domain.time_offset_seconds = offset
    domain.publish_wallclock()
    tsc = data.get("tsc")
    if type(tsc) is not int or not 0 <= tsc < 1 << 64:
        raise LocalProtocolError("tsc: expected a number of ticks")
    domain.tsc_offset = tsc - domain.clock.rdtsc()
    for vcpu, state in zip(domain.vcpu, vcpus, strict=True):
        initialised, down = state if isinstance(state, list) and len(state) == 2 else (0, 0)
        if type(initialised) is not bool or type(down) is not bool:
            raise LocalProtocolError(f"vcpus: {vcpu.id} is [initialised, down]")
        vcpu.initialised = initialised
        vcpu.stop() if down else vcpu.start()


def _populate(domain: Domain, data: Mapping[str, Any]) -> None:
    end = 0
    for run in _list(data, "ram"):
        pfn, count = run if isinstance(run, list) and len(run) == 2 else (-1, 0)
        if type(pfn) is not int or type(count) is not int or pfn < end or count < 1:
            raise LocalProtocolError(f"ram: {run!r} is no run of pfns behind {end:#x}")
        end = pfn + count
        if end > PFN_END:
            raise LocalProtocolError(f"ram: a run ends at {end:#x}, beyond the last pfn")
        domain.populate_run(pfn, count)
    for pfn in (XENSTORE_PFN, CONSOLE_PFN):
        if lib.p2m_type(domain.kernel, pfn) != P2M_RAM:
            raise LocalProtocolError(f"ram: the page of store or console, {pfn:#x}, is not there")


def _list(data: Mapping[str, Any], name: str) -> list[Any]:
    value = data.get(name)
    if not isinstance(value, list):
        raise LocalProtocolError(f"{name}: expected a list")
    return value
