/*
 * Preloaded beside xenstored_stub: where the daemon opens /proc/xen/NAME it gets
 * $XENSTORED_RUNDIR/NAME, and its monotonic clock runs fast, so that the write rate limit of
 * 200 a second does not slow tests down. A library of its own, since the other is versioned.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define CLOCK_SPEED 50

static int redirected(const char *path, int flags, int mode)
{
    static int (*real)(const char *, int, ...);
    char there[4096];

    if (!real)
        real = dlsym(RTLD_NEXT, "open");
    if (!strncmp(path, "/proc/xen/", 10)) {
        snprintf(there, sizeof(there), "%s/%s", getenv("XENSTORED_RUNDIR"), path + 10);
        path = there;
    }
    return real(path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    int mode;

    va_start(rest, flags);
    mode = flags & O_CREAT ? va_arg(rest, int) : 0;
    va_end(rest);
    return redirected(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    int mode;

    va_start(rest, flags);
    mode = flags & O_CREAT ? va_arg(rest, int) : 0;
    va_end(rest);
    return redirected(path, flags, mode);
}

int __open_2(const char *path, int flags) { return redirected(path, flags, 0); }
int __open64_2(const char *path, int flags) { return redirected(path, flags, 0); }

/* Its socket listens: a byte to whoever waits at the other end of XENSTORED_READY. */
int listen(int socket, int backlog)
{
    int (*real)(int, int) = dlsym(RTLD_NEXT, "listen");
    int failed = real(socket, backlog);
    const char *ready = getenv("XENSTORED_READY");

    if (!failed && ready && write(atoi(ready), "", 1) != 1)
        return -1;
    return failed;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = syscall(SYS_clock_gettime, clock, now);

    if (!failed && clock == CLOCK_MONOTONIC) {
        long long ns = (now->tv_sec * 1000000000LL + now->tv_nsec) * CLOCK_SPEED;

        now->tv_sec = ns / 1000000000LL;
        now->tv_nsec = ns % 1000000000LL;
    }
    return failed;
}
