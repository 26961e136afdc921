/*
 * Calls of the driver: each can be ended from inside, by a failure of the driver or because
 * Python raised where it was asked. The frames between are the driver's own: they are left as
 * they are, with what they hold.
 */
#include <link.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "runtime.h"

RUNTIME struct xenpv_end ends[ENDS_MAX];

static const int CAUGHT[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT };
#define NR_CAUGHT (sizeof(CAUGHT) / sizeof(CAUGHT[0]))
#define WATCHDOG (SIGRTMIN + 7)
#define AGAIN_NS 10000000

static RUNTIME struct sigaction before[NR_CAUGHT];
static RUNTIME unsigned catching;
static RUNTIME timer_t watchdog;
static RUNTIME int has_watchdog;
static RUNTIME pid_t watched_thread;
static RUNTIME unsigned watchdog_ms;
static RUNTIME struct entry *last_entry;    /* that ran when the watchdog looked, and how far */
static RUNTIME int64_t last_budget;
static RUNTIME uintptr_t text_start, text_end, load_base;

_Noreturn void entry_fail(int kind, uint64_t pc, const void *address, size_t size, int64_t detail,
                          const char *format, ...)
{
    struct entry *me = current;
    struct xenpv_failure *failure;
    va_list args;

    if (!me) {
        fprintf(stderr, "xenpv: a driver failed outside of a call: %s\n", format);
        _exit(70);
    }
    failure = &me->end->failure;
    failure->kind = kind;
    failure->pc = pc;
    failure->address = (uintptr_t)address;
    failure->size = (uint32_t)size;
    failure->detail = detail;
    va_start(args, format);
    vsnprintf(failure->text, sizeof(failure->text), format, args);
    va_end(args);
    me->ending = ENDED_FAILED;
    _longjmp(me->jump, 1);
}

_Noreturn void entry_abort(void)
{
    current->ending = ENDED_ABORTED;
    _longjmp(current->jump, 1);
}

/* signals */

static uint64_t stopped_at(const void *machine_context)
{
    const ucontext_t *context = machine_context;

#if defined(__x86_64__)
    return (uint64_t)context->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
    return context->uc_mcontext.pc;
#else
    (void)context;
    return 0;
#endif
}

static int in_driver(uint64_t pc)
{
    return pc - text_start < text_end - text_start;
}

static void caught(int number, siginfo_t *info, void *machine_context)
{
    uint64_t pc = stopped_at(machine_context);

    if (!current) {
        /* Not the driver's: as if we had not been here. It happens again. */
        catching = 1;
        signals_leave();
        return;
    }
    if (!in_driver(pc))
        pc = *newest_step;
    if ((number == SIGSEGV || number == SIGBUS) && info->si_code > 0) {
        unsigned long at = (unsigned long)(uintptr_t)info->si_addr;

        if (in_region(info->si_addr))
            entry_fail(FAILED_SIGNAL, pc, info->si_addr, 0, number,
                       "uses a page beside the ones it has, or one that it may only read");
        if (at < PAGE_SIZE)
            entry_fail(FAILED_SIGNAL, pc, info->si_addr, 0, number,
                       "uses a null pointer (address %#lx)", at);
        entry_fail(FAILED_SIGNAL, pc, info->si_addr, 0, number,
                   "uses memory that is not there at %#lx", at);
    }
    entry_fail(FAILED_SIGNAL, pc, NULL, 0, number, "raises SIG%s", sigabbrev_np(number));
}

static void set_timer(uint64_t ns)
{
    struct itimerspec when = { .it_value.tv_sec = (time_t)(ns / 1000000000u),
                               .it_value.tv_nsec = (long)(ns % 1000000000u) };

    timer_settime(watchdog, 0, &when, NULL);
}

/*
 * A call that takes steps is held to their number. What takes none between two looks, half of
 * its time apart, is a loop without anything in it.
 */
static void watched(int number, siginfo_t *info, void *machine_context)
{
    uint64_t pc = stopped_at(machine_context);

    (void)number;
    (void)info;
    if (!current || current != last_entry || current->budget != last_budget) {
        last_entry = current;
        last_budget = current ? current->budget : 0;
        set_timer(watchdog_ms * 500000ull);
    } else if (!in_driver(pc)) {        /* in the C library, perhaps with its locks */
        set_timer(AGAIN_NS);
    } else {
        entry_fail(FAILED_TIME, pc, NULL, 0, watchdog_ms,
                   "does not return: %u ms of CPU and no step", watchdog_ms);
    }
}

/* While it is in use, a signal of the driver's own making ends the call, not the process. */
void signals_catch(void)
{
    struct sigaction ours = { .sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_NODEFER };

    if (catching++)
        return;
    for (unsigned i = 0; i < NR_CAUGHT; i++)
        sigaction(CAUGHT[i], &ours, &before[i]);
}

void signals_leave(void)
{
    if (!catching || --catching)
        return;
    for (unsigned i = 0; i < NR_CAUGHT; i++)
        sigaction(CAUGHT[i], &before[i], NULL);
}

/* CPU time of this thread without a step until a call counts as hung; 0: never. */
void watchdog_arm(unsigned milliseconds)
{
    pid_t thread = (pid_t)syscall(SYS_gettid);

    if (has_watchdog && milliseconds && thread != watched_thread) {
        timer_delete(watchdog);
        has_watchdog = 0;
    }
    if (!has_watchdog && milliseconds) {
        struct sigaction ours = { .sa_sigaction = watched, .sa_flags = SA_SIGINFO | SA_NODEFER };
        struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = WATCHDOG };

        event._sigev_un._tid = watched_thread = thread;
        if (sigaction(WATCHDOG, &ours, NULL) ||
            timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &watchdog))
            return;
        has_watchdog = 1;
    }
    watchdog_ms = milliseconds;
    last_entry = NULL;
    if (has_watchdog)
        set_timer(milliseconds * 500000ull);
}

/* the driver's own ways out */

_Noreturn void __wrap_abort(void)
{
    entry_fail(FAILED_ASSERT, CALLER, NULL, 0, 0, "calls abort()");
}

_Noreturn void __wrap_exit(int status)
{
    entry_fail(FAILED_ASSERT, CALLER, NULL, 0, status, "calls exit(%d)", status);
}

_Noreturn void __wrap___assert_fail(const char *expression, const char *file, unsigned line,
                                    const char *function)
{
    (void)file;
    (void)line;
    entry_fail(FAILED_ASSERT, CALLER, NULL, 0, 0, "asserts `%s` in %s, which does not hold",
               expression, function);
}

/* the driver's own memory: as after loading, when no end of it is left */

extern uint8_t __start_xenpv_runtime[], __stop_xenpv_runtime[];
static RUNTIME uint8_t *data, *saved;
static RUNTIME size_t data_size;

static int look_at(struct dl_phdr_info *info, size_t size, void *unused)
{
    uintptr_t mine = (uintptr_t)__start_xenpv_runtime, code = (uintptr_t)&entry_abort;
    uintptr_t hidden = 0, first = 0, last = 0;

    (void)size;
    (void)unused;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + part->p_vaddr;

        if (part->p_type == PT_LOAD && code - start < part->p_memsz) {
            text_start = start;
            text_end = start + part->p_memsz;
            load_base = info->dlpi_addr;
        }
        if (part->p_type == PT_LOAD && mine - start < part->p_memsz) {
            first = start;
            last = start + part->p_memsz;
        }
        if (part->p_type == PT_GNU_RELRO)
            hidden = start + part->p_memsz;
    }
    if (!first)
        return 0;
    if (hidden > first)         /* read-only since it was relocated */
        first = (hidden + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
    data = (uint8_t *)first;
    data_size = last - first;
    return 1;
}

/* Copies but for what is the runtime's own. */
static void copy_data(uint8_t *to, const uint8_t *from)
{
    size_t start = (size_t)(__start_xenpv_runtime - data);
    size_t end = (size_t)(__stop_xenpv_runtime - data);

    memcpy(to, from, start);
    memcpy(to + end, from + end, data_size - end);
}

/* Where it was loaded; 0 if there is no memory. */
uint64_t xenpv_open(void)
{
    if (!region) {
        region_open();
        dl_iterate_phdr(look_at, NULL);
        saved = malloc(data_size);
        if (!saved)
            return 0;
        copy_data(saved, data);
    }
    return load_base;
}

/* the ends */

struct xenpv_end *xenpv_end_new(host_call call, host_access access, void *context, void *machine,
                                int memory, uint32_t domid, uint32_t otherend_id,
                                const char *nodename, const char *otherend)
{
    struct xenpv_end *end = NULL;
    int live = 0;

    for (int i = ENDS_MAX - 1; i >= 0; i--) {
        live += ends[i].used;
        if (!ends[i].used)
            end = &ends[i];
    }
    if (!end)
        return NULL;
    if (!live) {
        copy_data(data, saved);
        region_reset();
    }
    memset(end, 0, sizeof(*end));
    end->used = 1;
    end->number = (int)(end - ends);
    end->memory = memory;
    end->domid = domid;
    end->otherend_id = otherend_id;
    end->call = call;
    end->access = access;
    end->context = context;
    end->machine = machine;
    end->blocks.next = end->blocks.previous = &end->blocks;
    snprintf(end->nodename, NAME_SIZE, "%s", nodename);
    snprintf(end->otherend, NAME_SIZE, "%s", otherend);
    return end;
}

/* Nothing of it is mapped or allocated any more. */
void xenpv_end_free(struct xenpv_end *end)
{
    region_drop(end);
    heap_drop(end);
    end->used = 0;
}

const struct xenpv_failure *xenpv_end_failure(struct xenpv_end *end)
{
    return &end->failure;
}

/* Where in the driver the access or call is that Python hears of. */
uint64_t xenpv_end_pc(struct xenpv_end *end)
{
    return end->pc;
}

/* Blocks of the heap that were not freed; the first one's size and where it was allocated. */
uint32_t xenpv_end_blocks(struct xenpv_end *end, uint64_t *size, uint64_t *pc)
{
    uint32_t count = 0;

    for (struct block *one = end->blocks.next; one != &end->blocks; one = one->next) {
        if (!count++) {
            *size = one->size;
            *pc = one->pc;
        }
    }
    return count;
}

static int64_t dispatch(struct xenpv_end *end, const struct xenpv_enter *enter, const void *given)
{
    const struct xenpv_driver *driver = &xenpv_driver;

    switch (enter->what) {
    case ENTER_PROBE:
        return driver->probe ? driver->probe(end) : 0;
    case ENTER_OTHEREND:
        return driver->otherend_changed ? driver->otherend_changed(end, (int)enter->args[0]) : 0;
    case ENTER_REMOVE:
        if (driver->remove)
            driver->remove(end);
        return 0;
    case ENTER_RECEIVE:
        if (driver->receive)
            driver->receive(end, given, enter->size);
        return 0;
    case ENTER_SEND:
        if (driver->send)
            driver->send(end, given, enter->size);
        return 0;
    case ENTER_SUBMIT:
        if (driver->submit)
            driver->submit(end, (uint64_t)enter->args[0], (unsigned)enter->args[1],
                           (uint64_t)enter->args[2], enter->has_data ? given : NULL, enter->size);
        return 0;
    case ENTER_HANDLER:
        ((xenpv_handler)(uintptr_t)enter->handler)(end, (void *)(uintptr_t)enter->context);
        return 0;
    case ENTER_WATCH:
        ((xenpv_watch_handler)(uintptr_t)enter->handler)(end, (void *)(uintptr_t)enter->context,
                                                         given);
        return 0;
    default:
        return -ENOSYS;
    }
}

/* Call the driver. How that ended, xenpv_ending; `result` is what the driver returned. */
int xenpv_enter(struct xenpv_end *end, const struct xenpv_enter *enter, const void *given,
                int64_t *result)
{
    struct entry here = { .end = end, .budget = (int64_t)enter->budget, .steps = enter->budget,
                          .stack = (uintptr_t)__builtin_frame_address(0) };

    *result = 0;
    signals_catch();
    watchdog_arm(enter->milliseconds);
    current = &here;
    if (!_setjmp(here.jump))
        *result = dispatch(end, enter, given);
    current = NULL;
    if (catching == 1)          /* the last one: others may stand where they were preempted */
        watchdog_arm(0);
    signals_leave();
    return here.ending;
}
