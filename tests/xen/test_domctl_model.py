"""Lives of several domains against a model of a few states, and mistakes that it has to find.

The model knows who is there, paused, shut down, dead, held and by whom; the machine under
test has seven numbers, so that they are used again soon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from xenpv.abi._kernel import lib
from xenpv.errors import GrantError, HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.evtchn import VIRQ_DOM_EXC
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

FIRST_RESERVED = 7
HOLE = 0x100000
PAGE = 0x100
EPERM, EEXIST, EINVAL, EOVERFLOW = 1, 17, 22, 75
SUSPEND = 2
HVM_HAP, SHUTDOWN, PAUSED, RUNNING, DYING = 0x102, 0x4, 0x8, 0x20, 0x1


@attrs.define(eq=False)
class Model:
    """One domain: what it should be, beside what it is."""

    domain: Domain
    paused: int = 1
    code: int | None = None
    stopped: bool = False
    suspended: bool = False
    result: int = 0
    dead: bool = False
    target: Model | None = None
    work_due: bool = False
    return_due: bool = False
    ran: list[str] = attrs.Factory(list)
    expected: list[str] = attrs.Factory(list)
    tasks: list[Any] = attrs.Factory(list)

    @property
    def domid(self) -> int:
        return self.domain.domid

    @property
    def runnable(self) -> bool:
        return not (self.paused or self.stopped or self.dead)

    def flags(self) -> int:
        code = 255 if self.code is None else self.code
        return (
            HVM_HAP
            | DYING * self.dead
            | SHUTDOWN * self.stopped
            | PAUSED * (self.paused > 0)
            | RUNNING * self.runnable
            | code << 16
        )


@attrs.frozen
class Map:
    mapper: Model
    granter: Model
    handle: int
    pfn: int


class Lives(RuleBasedStateMachine):
    mutate: ClassVar[Callable[[Hypervisor], None] | None] = None

    @initialize()
    def boot(self) -> None:
        self.hypervisor = Hypervisor(Loop(), nr_frames=1 << 10, first_reserved=FIRST_RESERVED)
        if type(self).mutate is not None:
            type(self).mutate(self.hypervisor)
        self.dom0 = self.hypervisor.create_domain(0, max_pages=64)
        self.dom0.populate(8)
        self.dom0.unpause()
        self.port = self.dom0.evtchn.bind_virq(VIRQ_DOM_EXC)
        self.ctl = self.dom0.domctl
        while self.next_change() is not None:
            pass
        self.free = lib.machine_free_pages(self.hypervisor.machine)
        self.used = lib.machine_used_frames(self.hypervisor.machine)
        self.models: dict[int, Model] = {}
        self.maps: list[Map] = []
        self.last = 0
        self.expected_exc = False
        self.changed: set[int] = set()
        self.unique_ids: set[int] = {self.dom0.unique_id}
        self.pfns = iter(range(HOLE, HOLE + 100_000))
        for domid in (1, 2):
            self.create(domid)
            self.unpause(domid - 1)

    def next_change(self) -> int | None:
        try:
            return int(self.ctl.get_domain_state().domid)
        except HypercallError as error:
            assert error.name == "ENOENT"
            return None

    def pick(self, number: int, *, alive: bool = False) -> Model | None:
        candidates = [one for one in self.models.values() if not (alive and one.dead)]
        return candidates[number % len(candidates)] if candidates else None

    # the model

    def exc(self, model: Model) -> None:
        self.expected_exc = True
        self.changed.add(model.domid)

    def settle(self, model: Model) -> None:
        """Does a dead domain vanish?"""
        held = any(one.granter is model for one in self.maps)
        modelled = any(one.target is model for one in self.models.values())
        if not model.dead or held or modelled or model.domid not in self.models:
            return
        del self.models[model.domid]
        self.exc(model)
        target, model.target = model.target, None
        if target is not None:
            self.settle(target)

    def stop(self, model: Model, code: int) -> None:
        if model.code is None:
            model.code = code
        if not model.stopped:
            model.stopped = True
            self.exc(model)

    def refused(self, errno: int, call: Callable[[], object]) -> None:
        with pytest.raises(HypercallError) as caught:
            call()
        assert caught.value.errno == errno

    # rules

    @rule(domid=st.sampled_from([*range(FIRST_RESERVED), 0x7FF4, 0x7FF5]))
    def create(self, domid: int) -> None:
        taken = {0, *self.models}
        if domid < FIRST_RESERVED:
            expected = None if domid in taken else domid
        else:
            order = [*range(self.last + 1, FIRST_RESERVED), *range(1, FIRST_RESERVED)]
            expected = next((one for one in order if one not in taken), None)
            self.last = self.last if expected is None else expected
        if expected is None:
            self.refused(EEXIST, lambda: self.ctl.createdomain(domid, max_vcpus=1))
            return
        domain = self.ctl.createdomain(domid, max_vcpus=1)
        assert domain.domid == expected
        assert domain.unique_id not in self.unique_ids
        self.unique_ids.add(domain.unique_id)
        self.ctl.max_vcpus(expected, 1)
        self.ctl.max_mem(expected, 64)
        domain.populate(8)
        domain.write(PAGE, 0, b"page")
        model = Model(domain)
        model.tasks += [
            domain.task("work", lambda: model.ran.append("work")),
            domain.task("call", lambda: model.ran.append(f"returns {domain.suspend_result}")),
        ]
        self.models[expected] = model
        self.changed.add(expected)

    @precondition(lambda self: self.models)
    @rule(number=st.integers(0, 9), times=st.sampled_from([1, 1, 2, 255]))
    def pause(self, number: int, times: int) -> None:
        model = self.pick(number)
        assert model is not None
        for _ in range(times):
            if model.paused == 255:
                self.refused(EOVERFLOW, lambda: self.ctl.pausedomain(model.domid))
                return
            self.ctl.pausedomain(model.domid)
            model.paused += 1

    @precondition(lambda self: self.models)
    @rule(number=st.integers(0, 9))
    def unpause(self, number: int) -> None:
        model = self.pick(number)
        assert model is not None
        if not model.paused:
            self.refused(EINVAL, lambda: self.ctl.unpausedomain(model.domid))
            return
        self.ctl.unpausedomain(model.domid)
        model.paused -= 1

    @precondition(lambda self: self.pick(0, alive=True))
    @rule(number=st.integers(0, 9), reason=st.integers(0, 0x1FF))
    def shutdown(self, number: int, reason: int) -> None:
        model = self.pick(number, alive=True)
        assert model is not None
        model.domain.shutdown(reason)
        self.stop(model, reason & 0xFF)

    @precondition(lambda self: any(one.runnable for one in self.models.values()))
    @rule(number=st.integers(0, 9))
    def suspend(self, number: int) -> None:
        candidates = [one for one in self.models.values() if one.runnable]
        model = candidates[number % len(candidates)]
        model.domain.suspend(model.tasks[1])
        model.suspended = True
        model.result = 0
        self.stop(model, SUSPEND)

    @precondition(lambda self: self.models)
    @rule(number=st.integers(0, 9), cancel=st.booleans())
    def resume(self, number: int, cancel: bool) -> None:
        model = self.pick(number)
        assert model is not None
        if cancel:
            self.ctl.setvcpucontext(model.domid, 0, rax=1)
            model.result = 1
        self.ctl.resumedomain(model.domid)
        model.code = None
        model.stopped = False
        model.return_due = model.return_due or model.suspended
        model.suspended = False

    @precondition(lambda self: self.pick(0, alive=True))
    @rule(number=st.integers(0, 9))
    def wake(self, number: int) -> None:
        model = self.pick(number, alive=True)
        assert model is not None
        model.tasks[0].wake()
        model.work_due = True

    @precondition(lambda self: self.models)
    @rule(number=st.integers(0, 9))
    def destroy(self, number: int) -> None:
        model = self.pick(number)
        assert model is not None
        self.end(model)

    @precondition(lambda self: self.maps)
    @rule(number=st.integers(0, 9))
    def destroy_a_granter(self, number: int) -> None:
        self.end(self.maps[number % len(self.maps)].granter)

    def end(self, model: Model) -> None:
        self.refused(EPERM, lambda: model.domain.domctl.destroydomain(model.domid))
        self.ctl.destroydomain(model.domid)
        if model.dead:
            return
        granters = [one.granter for one in self.maps if one.mapper is model]
        self.maps = [one for one in self.maps if one.mapper is not model]
        for granter in granters:
            self.settle(granter)
        model.dead = True
        model.work_due = model.return_due = model.suspended = False
        self.exc(model)
        self.settle(model)

    @precondition(lambda self: self.pick(0, alive=True))
    @rule(mapper=st.integers(0, 9), granter=st.integers(0, 9))
    def map(self, mapper: int, granter: int) -> None:
        by, of = self.pick(mapper, alive=True), self.pick(granter)
        assert by is not None
        assert of is not None
        ref = 8 + by.domid
        if of.dead and any(one.granter is of and one.mapper is by for one in self.maps):
            return  # gnttab's own tables say what a pinned entry of the dead does
        if not of.dead:
            of.domain.check(lib.grant_entry_set(of.domain.kernel, ref, by.domid, PAGE, 1))
        pfn = next(self.pfns)
        if of.dead:
            with pytest.raises(GrantError):
                by.domain.gnttab.map(of.domid, ref, pfn)
            return
        handle = by.domain.gnttab.map(of.domid, ref, pfn)
        self.maps.append(Map(by, of, handle, pfn))

    @precondition(lambda self: self.maps)
    @rule(number=st.integers(0, 9))
    def unmap(self, number: int) -> None:
        one = self.maps.pop(number % len(self.maps))
        one.mapper.domain.gnttab.unmap(one.handle, one.pfn)
        self.settle(one.granter)

    @precondition(lambda self: self.pick(0, alive=True))
    @rule(number=st.integers(0, 9), whose=st.integers(0, 9))
    def set_target(self, number: int, whose: int) -> None:
        model, other = self.pick(number, alive=True), self.pick(whose)
        assert model is not None
        assert other is not None
        if model is other or model.target is not None:
            self.refused(EINVAL, lambda: self.ctl.set_target(model.domid, other.domid))
            return
        seen = other
        while seen.target is not None and seen is not model:
            seen = seen.target
        if seen is model:
            return  # in a circle they would stay for ever, as in Xen
        self.ctl.set_target(model.domid, other.domid)
        model.target = other

    @rule()
    def run(self) -> None:
        self.hypervisor.loop.run()
        for model in self.models.values():
            if not model.runnable:
                continue
            if model.work_due:
                model.expected.append("work")
            if model.return_due:
                model.expected.append(f"returns {model.result}")
            model.work_due = model.return_due = False

    @rule()
    def tell(self) -> None:
        told = []
        while (domid := self.next_change()) is not None:
            told.append(domid)
        assert told == sorted(self.changed)
        self.changed.clear()

    # what always holds

    @invariant()
    def everybody_is_what_the_model_says(self) -> None:
        if not hasattr(self, "models"):
            return
        assert list(self.hypervisor.domains) == [0, *self.models]
        assert self.hypervisor.dead == [one.domain for one in self.models.values() if one.dead]
        infos = {info.domain: info.flags for info in self.ctl.getdomaininfolist(1)}
        assert infos == {one.domid: one.flags() for one in self.models.values()}
        for model in self.models.values():
            assert self.dom0.find(model.domid) is model.domain
            assert sorted(model.ran) == sorted(model.expected)

    @invariant()
    def dom_exc_is_raised_when_the_model_says(self) -> None:
        if not hasattr(self, "models"):
            return
        raised = bool(lib.evtchn_take_pending(self.dom0.kernel, self.port))
        assert raised == self.expected_exc
        self.expected_exc = False

    def teardown(self) -> None:
        if not hasattr(self, "models"):
            return
        for one in self.maps:
            one.mapper.domain.gnttab.unmap(one.handle, one.pfn)
        for domid in list(self.hypervisor.domains)[1:]:
            if domid in self.hypervisor.domains:
                self.ctl.destroydomain(domid)
        assert list(self.hypervisor.domains) == [0]
        assert lib.machine_free_pages(self.hypervisor.machine) == self.free
        assert lib.machine_used_frames(self.hypervisor.machine) == self.used
        self.hypervisor.close()


COMMON = settings(
    deadline=None,
    derandomize=True,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
    database=None,
)

TestLives = Lives.TestCase
TestLives.settings = settings(COMMON, max_examples=100)


# Mistakes that somebody could make, and that the model has to notice.


def _vanishes_under_its_device_model(hypervisor: Hypervisor) -> None:
    vanish = hypervisor.vanish

    def wrong(domain: Domain) -> None:
        models, domain.device_models = domain.device_models, 0
        vanish(domain)
        domain.device_models = models

    hypervisor.vanish = wrong  # type: ignore[method-assign]


def _forgets_dom_exc_when_it_vanishes(hypervisor: Hypervisor) -> None:
    plain = hypervisor.raise_dom_exc

    def wrong(domid: int) -> None:
        if domid in hypervisor.domains:
            plain(domid)

    hypervisor.raise_dom_exc = wrong  # type: ignore[method-assign]


def _keeps_the_number(hypervisor: Hypervisor) -> None:
    hypervisor._domids.free = lambda domid: None  # type: ignore[method-assign,assignment]


def _in_each_domain(method: str, wrong: Callable[[Domain], None]) -> Callable[[Hypervisor], None]:
    def mutate(hypervisor: Hypervisor) -> None:
        create = hypervisor.create

        def created(*arguments: Any) -> Domain:
            domain = create(*arguments)
            setattr(domain, method, lambda: wrong(domain))
            return domain

        hypervisor.create = created  # type: ignore[method-assign]

    return mutate


def _resumes_with_the_old_code(domain: Domain) -> None:
    code = domain.shutdown_code
    Domain.resume(domain)
    domain.shutdown_code = code


def _returns_before_it_is_resumed(domain: Domain) -> None:
    Domain._finish_shutdown(domain)
    if domain._suspended is not None:
        for _ in range(domain._suspended.held):
            domain._suspended.release()
        domain._suspended.wake()


def _unpauses_at_once(domain: Domain) -> None:
    domain.pause_count = min(domain.pause_count, 1)
    Domain.unpause(domain)


MISTAKES = {
    "vanishes under its device model": _vanishes_under_its_device_model,
    "no DOM_EXC when it vanishes": _forgets_dom_exc_when_it_vanishes,
    "a number is never given back": _keeps_the_number,
    "resume keeps the code": _in_each_domain("resume", _resumes_with_the_old_code),
    "suspend returns early": _in_each_domain("_finish_shutdown", _returns_before_it_is_resumed),
    "pauses do not nest": _in_each_domain("unpause", _unpauses_at_once),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_model_finds(mistake: str) -> None:
    class Wrong(Lives):
        mutate = staticmethod(MISTAKES[mistake])

    quick = settings(COMMON, max_examples=200, phases=[Phase.generate], print_blob=False)
    with pytest.raises((AssertionError, HypercallError, KeyError, Failed, ExceptionGroup)):
        run_state_machine_as_test(Wrong, settings=quick)


Failed = pytest.fail.Exception
