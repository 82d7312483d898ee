/* LD_PRELOAD: makes fsync and fdatasync below one folder fail or dawdle, or the loading of a library dawdle, so that
 * a test can see what a daemon does then.
 *
 *   FAULT_DIR        only descriptors of files below this folder are meant
 *   FAULT_SYNC_AT=n  the n-th fsync or fdatasync and all later ones fail with EIO
 *   FAULT_SYNC_ONCE  with it: only the n-th fails (a later sync "succeeds", as Linux does it)
 *   FAULT_SYNC_IF=f  with it: only while the file f is there; others do not count
 *   FAULT_SYNC_MS=t  every fsync and fdatasync takes t ms longer (an SD card)
 *   FAULT_DLOPEN=s   loading a library with s in its path takes FAULT_DLOPEN_MS ms longer (a device that is slow to open)
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static atomic_long syncs;

static int meant(int fd)
{
    const char *dir = getenv("FAULT_DIR");
    char link[64], path[4096];
    if (!dir) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return strncmp(path, dir, strlen(dir)) == 0;
}

static void dawdle(long ms)
{
    struct timespec t = { ms / 1000, ms % 1000 * 1000000L };
    nanosleep(&t, NULL);
}

static int sync_fault(int fd)
{
    if (!meant(fd)) return 0;
    const char *ms = getenv("FAULT_SYNC_MS"), *at = getenv("FAULT_SYNC_AT");
    if (ms) dawdle(atol(ms));
    if (!at) return 0;
    const char *only_if = getenv("FAULT_SYNC_IF");
    if (only_if && access(only_if, F_OK) != 0) return 0;
    long n = atomic_fetch_add(&syncs, 1) + 1;
    return getenv("FAULT_SYNC_ONCE") ? n == atol(at) : n >= atol(at);
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define FAIL(code) do { errno = (code); return -1; } while (0)

int fsync(int fd) { REAL(fsync); if (sync_fault(fd)) FAIL(EIO); return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); if (sync_fault(fd)) FAIL(EIO); return real(fd); }

void *dlopen(const char *file, int mode)
{
    REAL(dlopen);
    const char *part = getenv("FAULT_DLOPEN"), *ms = getenv("FAULT_DLOPEN_MS");
    if (part && ms && file && strstr(file, part)) dawdle(atol(ms));
    return real(file, mode);
}
