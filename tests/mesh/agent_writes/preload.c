/* Stands before the system calls of a process that change files below one folder, and kills the process at one of them.
 *
 * WRITES_BELOW  the folder
 * WRITES_LOG    a file: each such call as a line `CALL NAME`
 * WRITES_KILL   `CALL NAME N`: the N-th such call never returns; of what was to be written, a half is
 *
 * NAME lies below the folder, which is `.` itself; what follows `.version-` in it, which is random, is left out. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PATH_MAX_HERE = 4096 };

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* The absolute path that a call at `dir` means, or of a descriptor when there is no path. */
static int path_of(int dir, const char *path, char *out) {
    out[0] = 0;
    if (path && path[0] == '/') return snprintf(out, PATH_MAX_HERE, "%s", path);
    char link[64];
    snprintf(link, sizeof link, dir == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dir);
    ssize_t length = readlink(link, out, PATH_MAX_HERE - 1);
    if (length < 0) return -1;
    out[length] = 0;
    if (path) {
        strncat(out, "/", PATH_MAX_HERE - 1 - strlen(out));
        strncat(out, path, PATH_MAX_HERE - 1 - strlen(out));
    }
    return 0;
}

/* What is random in a name goes. */
static void leave_out(char *name) {
    char *version = strstr(name, ".version-");
    if (!version) return;
    char *begin = version + strlen(".version-");
    char *end = begin + strspn(begin, "0123456789abcdef");
    memmove(begin, end, strlen(end) + 1);
}

/* Notes a call; true when the process is to end at it. */
static int is_last(const char *call, int dir, const char *path) {
    static int count;
    const char *below = getenv("WRITES_BELOW"), *log = getenv("WRITES_LOG"), *kill_at = getenv("WRITES_KILL");
    char full[PATH_MAX_HERE], line[PATH_MAX_HERE + 64];
    if (!below || path_of(dir, path, full) < 0) return 0;
    size_t above = strlen(below);
    if (strncmp(full, below, above) != 0 || (full[above] != 0 && full[above] != '/')) return 0;
    leave_out(full);
    int length = snprintf(line, sizeof line, "%s %s", call, full[above] ? full + above + 1 : ".");
    int last = 0;
    pthread_mutex_lock(&one_at_a_time);
    if (log) {
        int file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        line[length] = '\n';
        syscall(SYS_write, file, line, length + 1);
        syscall(SYS_close, file);
        line[length] = 0;
    }
    if (kill_at && strncmp(kill_at, line, length) == 0 && kill_at[length] == ' ')
        last = ++count == atoi(kill_at + length + 1);
    /* Held for ever by the one that ends: nothing more is written beside it. */
    if (!last) pthread_mutex_unlock(&one_at_a_time);
    return last;
}

static void end(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static void end_at(const char *call, int dir, const char *path) {
    if (is_last(call, dir, path)) end();
}

#define OPEN(name, at, ...)                                           \
    {                                                                 \
        mode_t mode = 0;                                              \
        if (flags & (O_CREAT | O_TMPFILE)) {                          \
            va_list rest;                                             \
            va_start(rest, flags);                                    \
            mode = va_arg(rest, mode_t);                              \
            va_end(rest);                                             \
        }                                                             \
        if (flags & (O_CREAT | O_TRUNC)) end_at("open", at, path);    \
        return NEXT(name)(__VA_ARGS__, mode);                         \
    }

int open(const char *path, int flags, ...) OPEN(open, AT_FDCWD, path, flags)
int open64(const char *path, int flags, ...) OPEN(open64, AT_FDCWD, path, flags)
int openat(int dir, const char *path, int flags, ...) OPEN(openat, dir, dir, path, flags)
int openat64(int dir, const char *path, int flags, ...) OPEN(openat64, dir, dir, path, flags)

ssize_t write(int file, const void *bytes, size_t length) {
    if (is_last("write", file, NULL)) {
        NEXT(write)(file, bytes, length / 2);
        end();
    }
    return NEXT(write)(file, bytes, length);
}

ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t at) {
    end_at("pwrite", file, NULL);
    return NEXT(pwrite64)(file, bytes, length, at);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    end_at("writev", file, NULL);
    return NEXT(writev)(file, parts, count);
}

int ftruncate64(int file, off64_t length) {
    end_at("ftruncate", file, NULL);
    return NEXT(ftruncate64)(file, length);
}

int fsync(int file) {
    end_at("fsync", file, NULL);
    return NEXT(fsync)(file);
}

int fdatasync(int file) {
    end_at("fdatasync", file, NULL);
    return NEXT(fdatasync)(file);
}

int fchmod(int file, mode_t mode) {
    end_at("fchmod", file, NULL);
    return NEXT(fchmod)(file, mode);
}

int chmod(const char *path, mode_t mode) {
    end_at("chmod", AT_FDCWD, path);
    return NEXT(chmod)(path, mode);
}

int mkdir(const char *path, mode_t mode) {
    end_at("mkdir", AT_FDCWD, path);
    return NEXT(mkdir)(path, mode);
}

int symlink(const char *to, const char *path) {
    end_at("symlink", AT_FDCWD, path);
    return NEXT(symlink)(to, path);
}

int link(const char *from, const char *path) {
    end_at("link", AT_FDCWD, path);
    return NEXT(link)(from, path);
}

int rename(const char *from, const char *path) {
    end_at("rename", AT_FDCWD, path);
    return NEXT(rename)(from, path);
}

int unlink(const char *path) {
    end_at("unlink", AT_FDCWD, path);
    return NEXT(unlink)(path);
}

int unlinkat(int dir, const char *path, int flags) {
    end_at("unlink", dir, path);
    return NEXT(unlinkat)(dir, path, flags);
}

int rmdir(const char *path) {
    end_at("rmdir", AT_FDCWD, path);
    return NEXT(rmdir)(path);
}
