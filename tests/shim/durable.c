/* What a disk would have kept, had the power failed. Preloaded into a process under test (LD_PRELOAD):
 *
 *   DURABLE_DIR=FOLDER       each file that is synced is copied there as it stands, named by its path with % for /.
 *                            A file that is deleted is deleted there too. What was written and not synced is not there.
 *   DURABLE_DELAY_US=N       every sync takes N microseconds longer.
 *   DURABLE_KILL_AT_WRITE=N  the process kills itself instead of its Nth write to a file.
 *
 * Not modelled: pages that reach the disk before anybody asks, in part or out of order, and folders that have to be
 * synced for a new name to last. msync is refused, so that nobody takes its silence for safety.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t copying = PTHREAD_MUTEX_INITIALIZER;
static atomic_long writes;

static void give_up(const char *what)
{
    dprintf(2, "durable: %s\n", what);
    abort();
}

static void *next(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (!found)
        give_up(name);
    return found;
}

static int is_file(int fd)
{
    struct stat about;
    return fstat(fd, &about) == 0 && S_ISREG(about.st_mode);
}

/* The place of the copy of `path`; 0 when no copies are wanted. */
static int place(const char *path, char *out)
{
    const char *folder = getenv("DURABLE_DIR");
    if (!folder)
        return 0;
    int length = snprintf(out, PATH_MAX, "%s/", folder);
    if (length + strlen(path) + 8 > PATH_MAX || strlen(path) > NAME_MAX - 8)
        give_up("path too long");
    char *end = out + length;
    for (const char *c = path; *c; c++)
        *end++ = *c == '/' ? '%' : *c;
    *end = 0;
    return 1;
}

/* Copies what `fd` is open on. Never opens it again: closing a second descriptor would drop SQLite's locks. */
static void keep(int fd)
{
    char link[64], path[PATH_MAX], to[PATH_MAX], fresh[PATH_MAX + 8];
    static char bytes[1 << 16];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        give_up("readlink");
    path[length] = 0;
    if (!is_file(fd) || strstr(path, " (deleted)") || !place(path, to))
        return;
    snprintf(fresh, sizeof fresh, "%s.fresh", to);
    pthread_mutex_lock(&copying);
    int copy = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    ssize_t (*put)(int, const void *, size_t) = next("write");
    off_t at = 0;
    ssize_t got;
    while ((got = pread(fd, bytes, sizeof bytes, at)) > 0) {
        if (put(copy, bytes, got) != got)
            give_up("a copy cannot be written");
        at += got;
    }
    /* Renamed when whole: a process killed in the middle of a sync leaves what was synced before. */
    if (got < 0 || close(copy) || rename(fresh, to))
        give_up("a copy cannot be made");
    pthread_mutex_unlock(&copying);
}

static int synced(int fd, const char *name)
{
    const char *delay = getenv("DURABLE_DELAY_US");
    if (delay) {
        long us = atol(delay);
        struct timespec wait = {us / 1000000, us % 1000000 * 1000};
        nanosleep(&wait, NULL);
    }
    int (*sync)(int) = next(name);
    int result = sync(fd);
    if (result == 0)
        keep(fd);
    return result;
}

int fsync(int fd)
{
    return synced(fd, "fsync");
}

int fdatasync(int fd)
{
    return synced(fd, "fdatasync");
}

int msync(void *at, size_t length, int flags)
{
    (void)at, (void)length, (void)flags;
    give_up("msync is not modelled");
    return -1;
}

int unlink(const char *path)
{
    char to[PATH_MAX], whole[PATH_MAX];
    int known = realpath(path, whole) && place(whole, to);
    int (*gone)(const char *) = next("unlink");
    int result = gone(path);
    if (result == 0 && known)
        gone(to);
    return result;
}

static void about_to_write(int fd)
{
    const char *last = getenv("DURABLE_KILL_AT_WRITE");
    if (last && is_file(fd) && atomic_fetch_add(&writes, 1) + 1 == atol(last))
        kill(getpid(), SIGKILL);
}

ssize_t write(int fd, const void *bytes, size_t count)
{
    ssize_t (*put)(int, const void *, size_t) = next("write");
    about_to_write(fd);
    return put(fd, bytes, count);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at)
{
    ssize_t (*put)(int, const void *, size_t, off_t) = next("pwrite");
    about_to_write(fd);
    return put(fd, bytes, count, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at)
{
    ssize_t (*put)(int, const void *, size_t, off64_t) = next("pwrite64");
    about_to_write(fd);
    return put(fd, bytes, count, at);
}
