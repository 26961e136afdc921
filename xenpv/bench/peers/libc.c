/*
 * Preloaded beside stub.c: files of a host become files of $XENSTORED_RUNDIR, limits are as
 * high as a daemon likes, and whoever waits hears that the socket listens. With CLOCK_SPEED
 * its monotonic clock runs that many times faster, so that a write rate limit of 200 a second
 * does not slow tests down. A library of its own, since the other is versioned.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static const char *const folders[] = {
    "/proc/xen/", "/var/run/xenstored/", "/run/xenstored/", "/var/run/xen/", "/run/xen/",
    "/var/log/xen/",
};

/* `path`, or what stands for it, in `there` of `size` bytes. */
static const char *redirected(const char *path, char *there, size_t size)
{
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        size_t length = strlen(folders[i]);

        if (!strncmp(path, folders[i], length)) {
            snprintf(there, size, "%s/%s", getenv("XENSTORED_RUNDIR"), path + length);
            return there;
        }
    }
    return path;
}

static int redirected_open(const char *path, int flags, int mode)
{
    static int (*real)(const char *, int, ...);
    char there[4096];

    if (!real)
        real = dlsym(RTLD_NEXT, "open");
    return real(redirected(path, there, sizeof(there)), flags, mode);
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    int mode;

    va_start(rest, flags);
    mode = flags & O_CREAT ? va_arg(rest, int) : 0;
    va_end(rest);
    return redirected_open(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    int mode;

    va_start(rest, flags);
    mode = flags & O_CREAT ? va_arg(rest, int) : 0;
    va_end(rest);
    return redirected_open(path, flags, mode);
}

int __open_2(const char *path, int flags) { return redirected_open(path, flags, 0); }
int __open64_2(const char *path, int flags) { return redirected_open(path, flags, 0); }

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

/* oxenstored's socket has a fixed place. */
int bind(int socket, const struct sockaddr *address, socklen_t size)
{
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "bind");
    struct sockaddr_un moved = { .sun_family = AF_UNIX };
    char path[sizeof(moved.sun_path) + 1] = "";

    if (address->sa_family != AF_UNIX)
        return real(socket, address, size);
    memcpy(path, ((const struct sockaddr_un *)address)->sun_path,
           size - offsetof(struct sockaddr_un, sun_path));
    const char *there = redirected(path, moved.sun_path, sizeof(moved.sun_path));
    if (there == path)
        return real(socket, address, size);
    return real(socket, (struct sockaddr *)&moved, sizeof(moved));
}

int unlink(const char *path)
{
    int (*real)(const char *) = dlsym(RTLD_NEXT, "unlink");
    char there[4096];

    return real(redirected(path, there, sizeof(there)));
}

int mkdir(const char *path, mode_t mode)
{
    int (*real)(const char *, mode_t) = dlsym(RTLD_NEXT, "mkdir");
    char there[4096];

    return real(redirected(path, there, sizeof(there)), mode);
}

int chmod(const char *path, mode_t mode)
{
    int (*real)(const char *, mode_t) = dlsym(RTLD_NEXT, "chmod");
    char there[4096];

    return real(redirected(path, there, sizeof(there)), mode);
}

int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit) { return 0; }
int setrlimit64(__rlimit_resource_t resource, const struct rlimit64 *limit) { return 0; }

#ifdef CLOCK_SPEED
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
#endif
