/* Faults of the disk and of the wall clock, for a process that preloads this library.
 *
 * Calls on files below CHAOS_FOLDER fail, end early, flip a bit or wait, as the control file says,
 * which another process changes meanwhile. `tests/chaos/shim.py` has the same struct.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum fault {
    READ_ERROR, READ_SHORT, READ_END, READ_FLIP, READ_STALL, WRITE_ERROR, WRITE_SHORT, WRITE_STALL,
    OPEN_ERROR, SYNC_ERROR, MAP_ERROR, NAME_ERROR, FAULTS
};

struct control {
    int64_t clock_shift_ns; /* of the wall clock */
    uint64_t seed;
    uint32_t is_active; /* whether any rate is above 0 */
    uint32_t stall_ms;
    uint32_t rates[FAULTS]; /* chances in a million calls */
    uint64_t counts[FAULTS]; /* faults of all processes */
};

static struct control *control;
static const char *folder;
static uint64_t num_calls;

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = next(name)

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CHAOS_CONTROL"), *own = getenv("CHAOS_FOLDER");
    int (*real_open)(const char *, int, ...) = next("open");
    void *(*real_mmap)(void *, size_t, int, int, int, off_t) = next("mmap");
    if (!path || !own) return;
    int descriptor = real_open(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return;
    void *memory = real_mmap(0, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (memory == MAP_FAILED) return;
    folder = own;
    control = memory;
}

/* Return a number that the seed and the number of earlier calls of this process decide. */
static uint64_t draw(void) {
    uint64_t x = control->seed + 0x9e3779b97f4a7c15u * __atomic_add_fetch(&num_calls, 1, __ATOMIC_RELAXED);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static int is_below(const char *path) {
    size_t length = strlen(folder);
    return !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int path_of(int descriptor, char *path, size_t room) {
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, room - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

/* Return whether a fault happens now to a call on a path; a relative path belongs to `at`. */
static int strikes(enum fault fault, const char *path, int at) {
    char absolute[8192], base[4096];
    if (!control || !control->is_active || draw() % 1000000 >= control->rates[fault]) return 0;
    int errno_before = errno;
    if (path && path[0] != '/') {
        if (at == AT_FDCWD ? !getcwd(base, sizeof base) : !path_of(at, base, sizeof base)) base[0] = 0;
        snprintf(absolute, sizeof absolute, "%s/%s", base, path);
        path = absolute;
    } else if (!path) {
        path = path_of(at, absolute, sizeof absolute) ? absolute : "";
    }
    errno = errno_before;
    if (!is_below(path)) return 0;
    /* Only the files of units have checksums. */
    if (fault == READ_FLIP && !strstr(path, ".unit")) return 0;
    __atomic_add_fetch(&control->counts[fault], 1, __ATOMIC_RELAXED);
    return 1;
}

#define STRIKES(fault, descriptor) \
    (control && control->is_active && control->rates[fault] && strikes(fault, 0, descriptor))
#define FAIL(number) do { errno = number; return -1; } while (0)

static void stall(void) {
    struct timespec left = {control->stall_ms / 1000, control->stall_ms % 1000 * 1000000L};
    while (nanosleep(&left, &left) && errno == EINTR) {}
}

/* Return how many bytes a read may give, 0 at a pretended end, -1 after an error. */
static ssize_t before_read(int descriptor, size_t count) {
    if (STRIKES(READ_STALL, descriptor)) stall();
    if (STRIKES(READ_ERROR, descriptor)) FAIL(EIO);
    if (STRIKES(READ_END, descriptor)) return 0;
    if (count > 1 && STRIKES(READ_SHORT, descriptor)) return count / 2;
    return count;
}

static ssize_t after_read(int descriptor, char *bytes, ssize_t count) {
    if (count > 0 && STRIKES(READ_FLIP, descriptor)) bytes[draw() % count] ^= 1 << draw() % 8;
    return count;
}

static ssize_t before_write(int descriptor, size_t count) {
    if (STRIKES(WRITE_STALL, descriptor)) stall();
    if (STRIKES(WRITE_ERROR, descriptor)) FAIL(ENOSPC);
    if (count > 1 && STRIKES(WRITE_SHORT, descriptor)) return count / 2;
    return count;
}

#define LIMITED(before) \
    ssize_t most = count ? before(descriptor, count) : 0; \
    if (count && most <= 0) return most

ssize_t read(int descriptor, void *memory, size_t count) {
    REAL(ssize_t, "read", int, void *, size_t);
    LIMITED(before_read);
    return after_read(descriptor, memory, real(descriptor, memory, most));
}

ssize_t pread(int descriptor, void *memory, size_t count, off_t offset) {
    REAL(ssize_t, "pread", int, void *, size_t, off_t);
    LIMITED(before_read);
    return after_read(descriptor, memory, real(descriptor, memory, most, offset));
}
ssize_t pread64(int, void *, size_t, off64_t) __attribute__((alias("pread")));

ssize_t write(int descriptor, const void *memory, size_t count) {
    REAL(ssize_t, "write", int, const void *, size_t);
    LIMITED(before_write);
    return real(descriptor, memory, most);
}

ssize_t pwrite(int descriptor, const void *memory, size_t count, off_t offset) {
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    LIMITED(before_write);
    return real(descriptor, memory, most, offset);
}
ssize_t pwrite64(int, const void *, size_t, off64_t) __attribute__((alias("pwrite")));

/* Of several parts only the first is cut short. */
#define LIMITED_PARTS(before) \
    struct iovec first = {num ? parts[0].iov_base : 0, num ? parts[0].iov_len : 0}; \
    size_t count = first.iov_len; \
    LIMITED(before); \
    if (count && (size_t)most < count) { first.iov_len = most; parts = &first; num = 1; }

ssize_t readv(int descriptor, const struct iovec *parts, int num) {
    REAL(ssize_t, "readv", int, const struct iovec *, int);
    LIMITED_PARTS(before_read);
    return real(descriptor, parts, num);
}

ssize_t preadv(int descriptor, const struct iovec *parts, int num, off_t offset) {
    REAL(ssize_t, "preadv", int, const struct iovec *, int, off_t);
    LIMITED_PARTS(before_read);
    ssize_t got = real(descriptor, parts, num, offset);
    return num == 1 ? after_read(descriptor, parts[0].iov_base, got) : got;
}
ssize_t preadv64(int, const struct iovec *, int, off64_t) __attribute__((alias("preadv")));

ssize_t preadv2(int descriptor, const struct iovec *parts, int num, off_t offset, int flags) {
    REAL(ssize_t, "preadv2", int, const struct iovec *, int, off_t, int);
    LIMITED_PARTS(before_read);
    ssize_t got = real(descriptor, parts, num, offset, flags);
    return num == 1 ? after_read(descriptor, parts[0].iov_base, got) : got;
}
ssize_t preadv64v2(int, const struct iovec *, int, off64_t, int) __attribute__((alias("preadv2")));

ssize_t writev(int descriptor, const struct iovec *parts, int num) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    LIMITED_PARTS(before_write);
    return real(descriptor, parts, num);
}

ssize_t sendfile(int out, int descriptor, off_t *offset, size_t count) {
    REAL(ssize_t, "sendfile", int, int, off_t *, size_t);
    if (STRIKES(WRITE_ERROR, out)) FAIL(ENOSPC);
    LIMITED(before_read);
    return real(out, descriptor, offset, most);
}
ssize_t sendfile64(int, int, off64_t *, size_t) __attribute__((alias("sendfile")));

ssize_t copy_file_range(int descriptor, off64_t *from, int out, off64_t *to, size_t count, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    if (STRIKES(WRITE_ERROR, out)) FAIL(ENOSPC);
    LIMITED(before_read);
    return real(descriptor, from, out, to, most, flags);
}

static int open_fails(const char *path, int at, int flags) {
    int makes = flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE;
    if (!strikes(OPEN_ERROR, path, at)) return 0;
    errno = makes ? ENOSPC : EIO;
    return 1;
}

#define MODE \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest)

int open(const char *path, int flags, ...) {
    REAL(int, "open", const char *, int, ...);
    MODE;
    return open_fails(path, AT_FDCWD, flags) ? -1 : real(path, flags, mode);
}
int open64(const char *, int, ...) __attribute__((alias("open")));

int openat(int at, const char *path, int flags, ...) {
    REAL(int, "openat", int, const char *, int, ...);
    MODE;
    return open_fails(path, at, flags) ? -1 : real(at, path, flags, mode);
}
int openat64(int, const char *, int, ...) __attribute__((alias("openat")));

FILE *fopen(const char *path, const char *mode) {
    REAL(FILE *, "fopen", const char *, const char *);
    return open_fails(path, AT_FDCWD, 0) ? NULL : real(path, mode);
}
FILE *fopen64(const char *, const char *) __attribute__((alias("fopen")));

int fsync(int descriptor) {
    REAL(int, "fsync", int);
    if (STRIKES(WRITE_STALL, descriptor)) stall();
    if (STRIKES(SYNC_ERROR, descriptor)) FAIL(EIO);
    return real(descriptor);
}

int fdatasync(int descriptor) {
    REAL(int, "fdatasync", int);
    if (STRIKES(SYNC_ERROR, descriptor)) FAIL(EIO);
    return real(descriptor);
}

void *mmap(void *address, size_t length, int protection, int flags, int descriptor, off_t offset) {
    REAL(void *, "mmap", void *, size_t, int, int, int, off_t);
    if (descriptor >= 0 && STRIKES(MAP_ERROR, descriptor)) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return real(address, length, protection, flags, descriptor, offset);
}
void *mmap64(void *, size_t, int, int, int, off64_t) __attribute__((alias("mmap")));

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    if (strikes(NAME_ERROR, to, AT_FDCWD)) FAIL(ENOSPC);
    return real(from, to);
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    if (strikes(NAME_ERROR, to, to_at)) FAIL(ENOSPC);
    return real(from_at, from, to_at, to);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    if (strikes(NAME_ERROR, path, AT_FDCWD)) FAIL(ENOSPC);
    return real(path, mode);
}

int ftruncate(int descriptor, off_t length) {
    REAL(int, "ftruncate", int, off_t);
    if (STRIKES(WRITE_ERROR, descriptor)) FAIL(ENOSPC);
    return real(descriptor, length);
}
int ftruncate64(int, off64_t) __attribute__((alias("ftruncate")));

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    int failed = real(clock, now);
    int is_wall = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
    if (!failed && is_wall && control && control->clock_shift_ns) {
        int64_t total = now->tv_sec * 1000000000LL + now->tv_nsec + control->clock_shift_ns;
        now->tv_sec = total / 1000000000LL;
        now->tv_nsec = total % 1000000000LL;
    }
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec time;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &time)) return -1;
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}
