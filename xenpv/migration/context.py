"""A guest that is suspended as plain data, and that data as a guest in a new domain.

What it consists of: its kernel's and its drivers' objects, the tasks and timers of its domain,
and who takes the domain's upcalls. Its memory is another matter (pages.py), and so is what Xen
knows of the domain (xen/domain_context.py): both are in place before `rebuild`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from xenpv.abi.sched import SHUTDOWN
from xenpv.errors import LocalProtocolError, XenpvError
from xenpv.host.libxl import ToolstackError
from xenpv.migration.classes import ANOTHER_VERSION, Known
from xenpv.migration.decoding import Decoder, list_of
from xenpv.migration.encoding import Encoder
from xenpv.xen import domain_context
from xenpv.xen.loop import Task, Timer

if TYPE_CHECKING:
    from xenpv.guest import Guest
    from xenpv.xen.domain import Domain

FORMAT: Final = 1
# Of a guest: the attribute, its name in the data, and the class that it has.
ROOTS: Final = (
    ("fifo", "fifo", "builtins.bool"),
    ("build", "build", "xenpv.bus.inf.Build"),
    ("windows", "windows", "xenpv.bus.windows.Windows"),
    ("_bus", "bus", "xenpv.bus.xenbus.XenBus"),
    ("_registry", "registry", "xenpv.bus.registry.Registry"),
    ("_os", "os", "xenpv.iface.operatingsystem.OperatingSystem"),
)
RETIRED: Final = 1 << 20  # a task that is held so often never runs again
HELD_MAX: Final = 8
# What data that nobody's `capture` gave can lead to, in Python and in classes' __setstate__.
WRONG: Final = (TypeError, ValueError, LookupError, AttributeError, OverflowError, AssertionError,
                RecursionError, MemoryError, XenpvError)  # fmt: skip


# what Xen knows


def capture_domain(domain: Domain) -> dict[str, Any]:
    """What Xen keeps of a suspended domain beside its memory, for json.dumps."""
    return domain_context.save(domain)


def populate_domain(domain: Domain, data: object) -> None:
    """Pages without contents, parameters and vcpus, into a domain without a page.

    What a toolstack's `populate` calls before the memory comes. Raises ToolstackError.
    """
    if not isinstance(data, dict):
        raise ToolstackError("domain context: expected an object")
    try:
        domain_context.restore(domain, data)
    except WRONG as error:
        raise ToolstackError(f"domain context: {error}") from error


# capture


def capture(guest: Guest, *, trusted: Sequence[str] = ()) -> dict[str, Any]:
    """What runs in a suspended guest, for json.dumps. It is left as it is.

    `trusted` are modules of class drivers that are not xenpv's, beside its platform's.
    Raises ToolstackError for a guest that is not suspended, and for what is no plain data: the
    message says where it is.
    """
    domain = guest.created.domain
    if not domain.is_shutdown or domain.shutdown_code != SHUTDOWN.suspend:
        raise ToolstackError(f"guest {guest.name!r} is not suspended")
    if guest.created.config.driver_domain:
        # Xen would let it go, and leave every frontend without its backend.
        raise ToolstackError(f"guest {guest.name!r} is a driver domain: it cannot be saved")
    encoder = Encoder(domain, guest, Known((*guest.platform.trusted, *trusted)))
    for task in domain.tasks:
        encoder.task(task)
    for timer in domain.timers:
        encoder.timer(timer)
    try:
        roots = {
            name: encoder.value(getattr(guest, attribute), (-1, f"guest.{name}"))
            for attribute, name, _ in ROOTS
        }
        encoder.finish()
        upcalls = [_described(encoder, upcall, domain) for upcall in domain.upcalls]
        kernel = {
            "deliver": encoder.value(domain.deliverer, (-1, "deliver")),
            "upcalls": upcalls,
            "waiter": None if domain.suspended is None else encoder.task(domain.suspended),
        }
        tasks, timers = _tasks_and_timers(encoder, domain)
    except ToolstackError as error:
        raise ToolstackError(f"guest {guest.name!r}: {error}", error.code) from None
    guest.objects = [*encoder.originals, *encoder.tasks, *encoder.timers]
    return {
        "format": FORMAT,
        "roots": roots,
        "kernel": kernel,
        "tasks": tasks,
        "timers": timers,
        "classes": encoder.classes,
        "shapes": encoder.shapes,
        "objects": encoder.objects,
    }


def _tasks_and_timers(encoder: Encoder, domain: Domain) -> tuple[list[Any], list[Any]]:
    """Both tables, and with them everything that is reached only from there."""
    tasks: list[Any] = []
    timers: list[Any] = []
    while True:
        encoder.finish()
        if len(tasks) < len(encoder.tasks):
            tasks.append(_described(encoder, encoder.tasks[len(tasks)], domain))
        elif len(timers) < len(encoder.timers):
            timer = encoder.timers[len(timers)]
            loose = timer not in domain.timers
            task = encoder.task(timer.task)
            timers.append([task, timer.period_ns, None if loose else timer.left, loose])
        else:
            return tasks, timers


def _described(encoder: Encoder, task: Task, domain: Domain) -> dict[str, Any]:
    """A task: without what its domain's shutdown and pause hold it by."""
    name = f"task {task.name!r}"
    if task in domain.upcalls:
        vcpu = domain.vcpu[domain.upcalls.index(task)]
        held = task.held - domain.is_shutting_down - bool(domain.pause_count)
        held -= vcpu.down + vcpu.blocked
        return {"vcpu": vcpu.id, "held": held, "run": encoder.value(task.run, (-1, name))}
    if task.held > RETIRED:
        return {"name": task.name, "run": None}
    return {
        "name": task.name,
        "run": encoder.value(task.run, (-1, name)),
        "held": task.held - domain.is_shutting_down - bool(domain.pause_count),
        "due": task.due,
        "alarm": None if task.alarm is None else encoder.timer(task.alarm),
    }


# rebuild


def rebuild(guest: Guest, data: object, *, trusted: Sequence[str] = ()) -> None:
    """Put what `capture` gave into `guest`, whose domain is new, paused and has its memory.

    It goes on when it is first unpaused: the call that suspended it returns 0. Raises
    ToolstackError for data of another version and for any other that no guest can be; the guest
    has nothing of it then and should be destroyed.
    """
    domain = guest.created.domain
    if not domain.pause_count or domain.is_shutting_down:
        raise LocalProtocolError(f"guest {guest.name!r} is not paused")
    for task in [one for one in domain.tasks if one not in domain.upcalls]:
        domain.forget(task)  # it does not boot
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        wrong = f"expected format {FORMAT}: {ANOTHER_VERSION}"
        raise ToolstackError(f"guest context: {wrong}")
    known = Known((*guest.platform.trusted, *trusted))
    made = _Made(guest, data)
    try:
        made.decode(known)
    except WRONG as error:
        made.forget()
        raise ToolstackError(f"guest context: {error}") from error


class _Made:
    """Tasks, timers and objects that are made from data for a guest."""

    def __init__(self, guest: Guest, data: Mapping[str, Any]) -> None:
        self.guest = guest
        self.data = data
        self.domain = guest.created.domain
        self.tasks: list[Task] = []
        self.timers: list[Timer] = []

    def decode(self, known: Known) -> None:
        self._make_tasks()
        self._make_timers()
        decoder = Decoder(self.domain, self.guest, self.data, known, self.tasks, self.timers)
        decoder.fill()
        runs = [self._run(decoder, one) for one in list_of(self.data, "tasks")]
        roots = self._roots(decoder)
        kernel = self.data.get("kernel")
        if not isinstance(kernel, dict):
            raise ToolstackError("there is no kernel")
        deliver = decoder.value(kernel.get("deliver"))
        if deliver is not None and not callable(deliver):
            raise ToolstackError("kernel: what delivers events cannot be called")
        upcalls = list_of(kernel, "upcalls")
        if len(upcalls) != len(self.domain.upcalls):
            raise ToolstackError(f"kernel: {len(upcalls)} upcalls of {self.domain.vcpus} vcpus")
        upcall_runs = [self._run(decoder, one) for one in upcalls]
        waiter = kernel.get("waiter")
        waiter = None if waiter is None else decoder.value(["k", waiter])
        # Nothing is refused from here on.
        for task, run in zip(self.tasks, runs, strict=True):
            if run is not None and task not in self.domain.upcalls:
                task.run = run
        for upcall, run, one in zip(self.domain.upcalls, upcall_runs, upcalls, strict=True):
            upcall.run = run or upcall.run
            _hold(upcall, one)
        if deliver is not None:
            self.domain.set_deliver(deliver)
        self.domain.restored(waiter)
        for attribute, value in roots.items():
            setattr(self.guest, attribute, value)
        self.guest.objects = [*decoder.objects, *self.tasks, *self.timers]

    @staticmethod
    def _run(decoder: Decoder, described: Mapping[str, Any]) -> Callable[[], object] | None:
        run: Callable[[], object] | None = decoder.value(described.get("run"))
        if run is not None and not callable(run):
            raise ToolstackError(f"task {described.get('name')!r} runs what cannot be called")
        return run

    def _make_tasks(self) -> None:
        """In the order of their numbers: held, as the domain is paused."""
        for one in list_of(self.data, "tasks"):
            if not isinstance(one, dict):
                raise ToolstackError("a task is an object")
            vcpu, name = one.get("vcpu"), one.get("name")
            if vcpu is not None:
                if type(vcpu) is not int or not 0 <= vcpu < len(self.domain.upcalls):
                    raise ToolstackError(f"there is no vcpu {vcpu!r}")
                self.tasks.append(self.domain.upcalls[vcpu])
                continue
            if type(name) is not str:
                raise ToolstackError("a task has a name")
            task = self.domain.task(name, _nothing)
            self.tasks.append(task)
            if one.get("run") is None:
                self.domain.forget(task)
                continue
            _hold(task, one)
            task.due = one.get("due") is True

    def _make_timers(self) -> None:
        for one in list_of(self.data, "timers"):
            task, period, left, loose = one if isinstance(one, list) and len(one) == 4 else [-1] * 4
            if type(task) is not int or not 0 <= task < len(self.tasks) or not _is_time(period):
                raise ToolstackError("a timer is [task, period, time left, whether it is loose]")
            if loose:
                self.timers.append(Timer(self.domain.loop, self.tasks[task], period))
                continue
            timer = self.domain.timer(self.tasks[task], period)
            self.timers.append(timer)
            if left is not None:
                if not _is_time(left):
                    raise ToolstackError(f"a timer with {left!r} ns left")
                timer.set_aside(left)
        for task_, one in zip(self.tasks, self.data["tasks"], strict=True):
            alarm = one.get("alarm")
            if alarm is None:
                continue
            if type(alarm) is not int or not 0 <= alarm < len(self.timers):
                raise ToolstackError(f"there is no timer {alarm!r}")
            task_.alarm = self.timers[alarm]

    def _roots(self, decoder: Decoder) -> dict[str, Any]:
        saved = self.data.get("roots")
        if not isinstance(saved, dict):
            raise ToolstackError("there are no roots")
        roots = {}
        for attribute, name, kind in ROOTS:
            value = decoder.value(saved.get(name))
            if value is not None and f"{type(value).__module__}.{type(value).__name__}" != kind:
                raise ToolstackError(f"the root {name} is no {kind}")
            roots[attribute] = value
        return roots

    def forget(self) -> None:
        """Nothing of it stays in the domain."""
        domain = self.domain
        for timer in self.timers:
            timer.cancel()
            if timer in domain.timers:
                domain.timers.remove(timer)
        for task in self.tasks:
            task.alarm = None
            if task not in domain.upcalls:
                domain.forget(task)


def _hold(task: Task, described: Mapping[str, Any]) -> None:
    held = described.get("held")
    if type(held) is not int or not 0 <= held <= HELD_MAX:
        raise ToolstackError(f"task {task.name!r} is held {held!r} times")
    for _ in range(held):
        task.hold()


def _is_time(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _nothing() -> None:
    """What a task runs before it is known what it runs."""
