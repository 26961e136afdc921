"""What a toolstack changes of a domain that is there: memory, vcpus, its name, pause, sysrq.

libxl_mem.c and libxl_domain.c. Each goes by what the store says and leaves a note of it in the
configuration by which the domain is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import attrs

from xenpv.abi.hvm import HVM_PARAM
from xenpv.errors import ConfigError, HypercallError
from xenpv.host.libxl import LIBXL, Created, LibxlCtx, ToolstackError
from xenpv.xen.domain import SPECIAL_NR_PAGES
from xenpv.xen.loop import NS_PER_S

PAGE_KIB: Final = 4
SHUTDOWN_TIMEOUT_NS: Final = 60 * NS_PER_S  # of the acknowledgement
SLACK_PAGES: Final = 256  # LIBXL_MAXMEM_CONSTANT: 1 MiB above what the domain should have


def max_pages(memory_kib: int) -> int:
    """XEN_DOMCTL_max_mem of a domain of that size, video memory included."""
    return memory_kib // PAGE_KIB + SLACK_PAGES + SPECIAL_NR_PAGES


class Runtime:
    """The commands; `created` are all the domains there are, by domid."""

    def __init__(self, ctx: LibxlCtx, created: Mapping[int, Created]) -> None:
        self.ctx = ctx
        self._created = created

    def must_exist(self, made: Created) -> None:
        """ToolstackError(DOMAIN_NOTFOUND) once it is dead, whoever killed it."""
        if made.domain.dead:
            raise ToolstackError(f"domain {made.domid} does not exist", LIBXL.DOMAIN_NOTFOUND)

    def pause(self, made: Created) -> None:
        """Counts, and stops its vcpus; nothing in the store changes."""
        self.must_exist(made)
        self._domctl(made, "pause", self.ctx.control.domctl.pausedomain)

    def unpause(self, made: Created) -> None:
        """Counts down. ToolstackError(FAIL) if it is not paused."""
        self.must_exist(made)
        self._domctl(made, "unpause", self.ctx.control.domctl.unpausedomain)

    def _domctl(self, made: Created, what: str, call: Callable[[int], None]) -> None:
        try:
            call(made.domid)
        except HypercallError as error:
            raise ToolstackError(f"cannot {what} domain {made.domid}: {error.reason}") from error

    def set_memory(self, made: Created, memory_mib: int) -> None:
        """`xl mem-set`: the balloon's target, and how much it may have at most.

        The guest's balloon follows when the loop runs. ToolstackError: INVAL above static-max
        and below the video memory, FAIL without the nodes that creation wrote.
        """
        self.must_exist(made)

        def write(t: int) -> None:
            home = f"/local/domain/{made.domid}/memory"
            self._number(f"{home}/target", t)
            most_kib = self._number(f"{home}/static-max", t)
            videoram_kib = self._number(f"{home}/videoram", t, default=0)
            target_kib = memory_mib * 1024 - videoram_kib
            if not 0 <= target_kib <= most_kib:
                why = f"{memory_mib} MiB: at most {most_kib} KiB, beside {videoram_kib} of video"
                raise ToolstackError(f"memory of domain {made.domid}: {why} memory", LIBXL.INVAL)
            made.domain.set_max_pages(max_pages(memory_mib * 1024))
            self.ctx.xs.write(f"{home}/target", str(target_kib), t)
            self.ctx.xs.write(f"/vm/{made.uuid}/memory", str(target_kib // 1024), t)

        self.ctx.xs.transaction(write)
        try:
            made.config = attrs.evolve(made.config, memory_mib=memory_mib)
        except ConfigError:
            return  # with so little no domain can be made: it is made again as it was

    def _number(self, path: str, t: int, default: int | None = None) -> int:
        text = self.ctx.xs.read(path, t)
        if text is None and default is not None:
            return default
        if text is None or not text.isdecimal():
            raise ToolstackError(f"{path} is {text!r}: expected a number of KiB")
        return int(text)

    def set_vcpus(self, made: Created, vcpus: int) -> None:
        """`xl vcpu-set`: how many should be online; which the guest's kernel heeds, or not.

        ToolstackError: INVAL for none, FAIL for more than maxvcpus.
        """
        self.must_exist(made)
        if vcpus < 1:
            raise ToolstackError(f"{vcpus} vcpus: a domain has at least 1", LIBXL.INVAL)
        most = made.domain.vcpus
        if vcpus > most:
            raise ToolstackError(f"{vcpus} vcpus: domain {made.domid} has {most} at most")
        home = f"/local/domain/{made.domid}/cpu"
        states = {f"{n}/availability": "online" if n < vcpus else "offline" for n in range(most)}
        self.ctx.xs.transaction(lambda t: self.ctx.xs.write_all(home, states, t))
        made.config = attrs.evolve(made.config, vcpus=vcpus)

    def sysrq(self, made: Created, letter: str) -> None:
        """`xl sysrq`: one character. ToolstackError(INVAL) for anything else."""
        self.must_exist(made)
        if len(letter) != 1 or not letter.isascii():
            raise ToolstackError(f"sysrq of {letter!r}: expected one character", LIBXL.INVAL)
        self.ctx.xs.write(f"/local/domain/{made.domid}/control/sysrq", letter)

    def rename(self, made: Created, name: str) -> None:
        """`xl rename`. ToolstackError: INVAL for the name of another domain, FAIL if it is gone."""
        self.must_exist(made)
        xs = self.ctx.xs

        def write(t: int) -> None:
            self._check_name(made, name, t)
            xs.write(f"/local/domain/{made.domid}/name", name, t)
            xs.write(f"/vm/{made.uuid}/name", name, t)

        xs.transaction(write)
        made.config = attrs.evolve(made.config, name=name)

    def free_name(self, name: str, but: Created | None = None) -> None:
        """ToolstackError(INVAL) if another domain than `but` has it, or if it is none."""
        if not name:
            raise ToolstackError("a domain needs a name", LIBXL.INVAL)
        for one in self._created.values():
            if one is not but and one.config.name == name:
                raise ToolstackError(f"a domain named {name!r} exists", LIBXL.INVAL)

    def _check_name(self, made: Created, name: str, t: int) -> None:
        """libxl__domain_rename's: nobody has the new one, and it has the old one."""
        self.free_name(name, made)
        home = f"/local/domain/{made.domid}"
        found = self.ctx.xs.read(f"{home}/name", t)
        if found != made.config.name:
            why = "is missing" if found is None else f"is {found!r}"
            raise ToolstackError(f"{home}/name {why}, not {made.config.name!r}")

    def preserve(self, made: Created, name: str, uuid: str) -> None:
        """libxl_domain_preserve: a dead domain gets another name, UUID and /vm directory.

        The old /vm directory is the next domain's. ToolstackError as rename.
        """
        self.must_exist(made)
        home, vm = f"/local/domain/{made.domid}", f"/vm/{uuid}"
        xs = self.ctx.xs

        def write(t: int) -> None:
            self._check_name(made, name, t)
            xs.rm(vm, t)
            xs.write(vm, "", t)
            xs.set_permissions(vm, ["n0", f"r{made.domid}"], t)
            xs.write_all(home, {"vm": vm, "name": name}, t)
            # libxl writes the name into the old directory, for it goes by the domain's handle.
            xs.write_all(vm, {"uuid": uuid, "name": name}, t)

        xs.transaction(write)
        made.config = attrs.evolve(made.config, name=name, uuid=uuid)
        made.domain.handle = bytes.fromhex(uuid.replace("-", ""))

    # shutdown and reboot

    def request(self, made: Created, value: str) -> None:
        """Write control/shutdown and wait for its acknowledgement: "" there, or nothing.

        The request is not withdrawn. ToolstackError: NOPARAVIRT for an HVM guest whose kernel
        has set no callback, TIMEDOUT after 60 s, DOMAIN_NOTFOUND.
        """
        self.must_exist(made)
        domid = made.domid
        control = self.ctx.control
        if made.config.is_hvm and not control.hvm.get_param(domid, HVM_PARAM.CALLBACK_IRQ):
            why = f"domain {domid} has no PV drivers: it would not see a request to {value}"
            raise ToolstackError(why, LIBXL.NOPARAVIRT)
        path = f"/local/domain/{domid}/control/shutdown"
        self.ctx.xs.write(path, value)
        self.ctx.wait(
            lambda: not self.ctx.xs.read(path),
            SHUTDOWN_TIMEOUT_NS,
            f"domain {domid} to acknowledge {value}",
        )

    def wait_shutdown(self, made: Created) -> int:
        """`xl shutdown -w`: until it is down or dead; its reason code, of a dead one 0."""
        domain = made.domain
        self.ctx.wait(
            lambda: domain.is_shutdown or domain.dying,
            2 * SHUTDOWN_TIMEOUT_NS,
            f"domain {made.domid} to shut down",
        )
        return 0 if domain.shutdown_code is None else domain.shutdown_code

    def wait_death(self, made: Created) -> None:
        """`xl shutdown -ww`: until somebody has destroyed it."""
        self.ctx.wait(
            lambda: made.domain.dying, 2 * SHUTDOWN_TIMEOUT_NS, f"domain {made.domid} to die"
        )
