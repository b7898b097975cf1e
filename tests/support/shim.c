/* Journals what a process writes below one folder, and fails writes and syncs on request.
 *
 * Loaded with LD_PRELOAD. Every call that changes a file or folder below VECSTORE_SHIM_ROOT is carried out and then
 * appended, data included, to VECSTORE_SHIM_JOURNAL, under one lock, so that the journal's order is the order in which
 * the calls happened. Writes to the file VECSTORE_SHIM_ACKS are journaled too: what a writer acknowledged has its place
 * among its writes and syncs. VECSTORE_SHIM_SYNC=skip leaves real syncs out, since crash images are made from the
 * journal.
 *
 * It does not see what the C library writes for stdio (fwrite, fprintf), and no write through a mapping: shared writable
 * mappings are journaled as such, so that a test can refuse them. It calls the kernel directly and nothing of the
 * C library that it replaces.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, WRITE, TRUNCATE, RENAME, LINK, UNLINK, MKDIR, RMDIR, SYNC, SYNC_FOLDER, ACK, MAP };
enum { FAIL_SYNC = 1, FAIL_WRITE = 2 };
enum { FDS = 65536 };

struct entry { uint32_t op, a_bytes, b_bytes, zero; uint64_t ino, offset; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX], acks[PATH_MAX];
static size_t root_bytes;
static int journal = -1, skip_sync;
static ino_t tracked[FDS]; /* inode of the file below the root that was opened as this descriptor */
static ino_t acks_ino;
static struct { int kind, err, times; long after; char needle[256]; } fault;

static void journal_put(int op, uint64_t ino, uint64_t offset, const void *a, size_t a_bytes, const void *b,
                        size_t b_bytes) {
    struct entry e = { op, a_bytes, b_bytes, 0, ino, offset };
    struct iovec v[3] = { { &e, sizeof e }, { (void *)a, a_bytes }, { (void *)b, b_bytes } };
    if (journal >= 0 && syscall(SYS_writev, journal, v, 3) != (long)(sizeof e + a_bytes + b_bytes)) abort();
}

static void journal_paths(int op, uint64_t ino, const char *a, const char *b) {
    journal_put(op, ino, 0, a, strlen(a), b, b ? strlen(b) : 0);
}

static void open_environment(void) __attribute__((constructor));
static void open_environment(void) {
    const char *where = getenv("VECSTORE_SHIM_ROOT"), *to = getenv("VECSTORE_SHIM_JOURNAL"),
               *ack = getenv("VECSTORE_SHIM_ACKS"), *sync = getenv("VECSTORE_SHIM_SYNC");
    skip_sync = sync && !strcmp(sync, "skip");
    if (!where) return;
    strncpy(root, where, sizeof root - 1);
    root_bytes = strlen(root);
    if (ack) strncpy(acks, ack, sizeof acks - 1);
    if (to) journal = syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

/* The absolute path without empty and "." parts, in `out`; whether it lies below the root. */
static int below_root(int dir, const char *path, char *out) {
    char full[2 * PATH_MAX];
    size_t n = 0, w = 0;
    if (!root_bytes || !path) return 0;
    if (path[0] != '/') {
        if (dir == AT_FDCWD) {
            if (syscall(SYS_getcwd, full, PATH_MAX) <= 0) return 0;
            n = strlen(full);
        } else {
            char link[64] = "/proc/self/fd/", digits[16];
            int d = 0, k = 14;
            for (int v = dir; v || !d; v /= 10) digits[d++] = '0' + v % 10;
            while (d) link[k++] = digits[--d];
            link[k] = 0;
            long got = syscall(SYS_readlinkat, AT_FDCWD, link, full, PATH_MAX - 1);
            if (got <= 0) return 0;
            n = got;
        }
        full[n++] = '/';
    }
    strncpy(full + n, path, PATH_MAX - 1);
    full[n + PATH_MAX - 1] = 0;
    for (char *part = full; *part;) {
        while (*part == '/') part++;
        char *end = strchrnul(part, '/');
        size_t bytes = end - part;
        if (bytes && !(bytes == 1 && *part == '.')) {
            if (w + bytes + 2 > PATH_MAX) return 0;
            out[w++] = '/';
            memcpy(out + w, part, bytes);
            w += bytes;
        }
        part = end;
    }
    out[w] = 0;
    return !strncmp(out, root, root_bytes) && (out[root_bytes] == '/' || !out[root_bytes]);
}

static ino_t inode_at(int dir, const char *path, struct stat *s) {
    return syscall(SYS_newfstatat, dir, path, s, AT_SYMLINK_NOFOLLOW) ? 0 : s->st_ino;
}

/* The inode when `fd` is a tracked file or folder, else 0. */
static ino_t tracked_inode(int fd, struct stat *s) {
    if (fd < 0 || fd >= FDS || !tracked[fd]) return 0;
    if (syscall(SYS_fstat, fd, s) || s->st_ino != tracked[fd]) return 0;
    return s->st_ino;
}

/* Fail the `after`-th matching call from now, and `times` of them (-1: all), with `err`. kind 0 lifts it. */
void vecstore_shim_fail(int kind, int err, long after, int times, const char *needle) {
    pthread_mutex_lock(&lock);
    fault.kind = kind, fault.err = err, fault.after = after, fault.times = times;
    strncpy(fault.needle, needle ? needle : "", sizeof fault.needle - 1);
    pthread_mutex_unlock(&lock);
}

static int must_fail(int kind, int fd) {
    char link[64] = "/proc/self/fd/", path[PATH_MAX], digits[16];
    if (fault.kind != kind || !fault.times) return 0;
    int d = 0, k = 14;
    for (int v = fd; v || !d; v /= 10) digits[d++] = '0' + v % 10;
    while (d) link[k++] = digits[--d];
    link[k] = 0;
    long got = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    path[got > 0 ? got : 0] = 0;
    if (!strstr(path, fault.needle)) return 0;
    if (--fault.after > 0) return 0;
    if (fault.times > 0) fault.times--;
    errno = fault.err;
    return 1;
}

/* -- opening ------------------------------------------------------------------------------------------------------ */

static int do_open(int dir, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    struct stat before, after;
    if (acks[0] && path && !strcmp(path, acks)) {
        int fd = syscall(SYS_openat, dir, path, flags, mode);
        if (fd >= 0 && fd < FDS && !syscall(SYS_fstat, fd, &after)) tracked[fd] = acks_ino = after.st_ino;
        return fd;
    }
    if (!below_root(dir, path, full)) return syscall(SYS_openat, dir, path, flags, mode);
    pthread_mutex_lock(&lock);
    ino_t there = inode_at(dir, path, &before);
    int fd = syscall(SYS_openat, dir, path, flags, mode), err = errno;
    if (fd >= 0 && fd < FDS && !syscall(SYS_fstat, fd, &after)) {
        tracked[fd] = after.st_ino;
        if (!there && (flags & O_CREAT)) journal_paths(CREATE, after.st_ino, full, 0);
        else if ((flags & O_TRUNC) && before.st_size) journal_put(TRUNCATE, after.st_ino, 0, 0, 0, 0, 0);
    }
    pthread_mutex_unlock(&lock);
    errno = err;
    return fd;
}

#define MODE_OF(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list ap; va_start(ap, flags); mode = va_arg(ap, int); va_end(ap); }

int open(const char *path, int flags, ...) { MODE_OF(flags) return do_open(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE_OF(flags) return do_open(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE_OF(flags) return do_open(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE_OF(flags) return do_open(dir, path, flags | O_LARGEFILE, mode); }
int creat(const char *path, mode_t mode) { return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }
int __open_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }

/* -- data --------------------------------------------------------------------------------------------------------- */

static void journal_vector(ino_t ino, const struct iovec *v, int count, size_t done, uint64_t offset) {
    for (int i = 0; i < count && done; i++) {
        size_t part = v[i].iov_len < done ? v[i].iov_len : done;
        journal_put(ino == acks_ino ? ACK : WRITE, ino, offset, v[i].iov_base, part, 0, 0);
        offset += part, done -= part;
    }
}

/* position < 0: at the file's own position */
static ssize_t do_write(int fd, const struct iovec *v, int count, off_t position) {
    struct stat s;
    pthread_mutex_lock(&lock);
    ino_t ino = tracked_inode(fd, &s);
    ssize_t done = -1;
    if (!(ino && must_fail(FAIL_WRITE, fd))) {
        done = position < 0 ? syscall(SYS_writev, fd, v, count) : syscall(SYS_pwritev, fd, v, count, position, 0L);
        int err = errno;
        if (ino && done > 0)
            journal_vector(ino, v, count, done, position < 0 ? syscall(SYS_lseek, fd, 0, SEEK_CUR) - done : position);
        errno = err;
    }
    int err = errno;
    pthread_mutex_unlock(&lock);
    errno = err;
    return done;
}

static int watched(int fd) { return fd >= 0 && fd < FDS && tracked[fd]; }

ssize_t write(int fd, const void *data, size_t bytes) {
    struct iovec v = { (void *)data, bytes };
    return watched(fd) ? do_write(fd, &v, 1, -1) : syscall(SYS_write, fd, data, bytes);
}
ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at) {
    struct iovec v = { (void *)data, bytes };
    return watched(fd) ? do_write(fd, &v, 1, at) : syscall(SYS_pwrite64, fd, data, bytes, at);
}
ssize_t pwrite64(int fd, const void *data, size_t bytes, off_t at) { return pwrite(fd, data, bytes, at); }
ssize_t writev(int fd, const struct iovec *v, int count) {
    return watched(fd) ? do_write(fd, v, count, -1) : syscall(SYS_writev, fd, v, count);
}
ssize_t pwritev(int fd, const struct iovec *v, int count, off_t at) {
    return watched(fd) ? do_write(fd, v, count, at) : syscall(SYS_pwritev, fd, v, count, at, 0L);
}
ssize_t pwritev64(int fd, const struct iovec *v, int count, off_t at) { return pwritev(fd, v, count, at); }
ssize_t pwritev2(int fd, const struct iovec *v, int count, off_t at, int flags) {
    return watched(fd) ? do_write(fd, v, count, at) : syscall(SYS_pwritev2, fd, v, count, at, 0L, flags);
}
ssize_t pwritev64v2(int fd, const struct iovec *v, int count, off_t at, int flags) {
    return pwritev2(fd, v, count, at, flags);
}

/* Copies inside the kernel would pass the journal by; callers fall back to reading and writing. */
ssize_t sendfile64(int out, int in, off_t *at, size_t bytes) {
    if (watched(out)) { errno = EINVAL; return -1; }
    return syscall(SYS_sendfile, out, in, at, bytes);
}
ssize_t sendfile(int out, int in, off_t *at, size_t bytes) { return sendfile64(out, in, at, bytes); }
ssize_t copy_file_range(int in, off_t *in_at, int out, off_t *out_at, size_t bytes, unsigned flags) {
    if (watched(out)) { errno = EXDEV; return -1; }
    return syscall(SYS_copy_file_range, in, in_at, out, out_at, bytes, flags);
}

int ftruncate(int fd, off_t bytes) {
    struct stat s;
    pthread_mutex_lock(&lock);
    ino_t ino = tracked_inode(fd, &s);
    int rc = syscall(SYS_ftruncate, fd, bytes), err = errno;
    if (!rc && ino && bytes != s.st_size) journal_put(TRUNCATE, ino, bytes, 0, 0, 0, 0);
    pthread_mutex_unlock(&lock);
    errno = err;
    return rc;
}
int ftruncate64(int fd, off_t bytes) { return ftruncate(fd, bytes); }
int truncate(const char *path, off_t bytes) {
    int fd = do_open(AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0) return -1;
    int rc = ftruncate(fd, bytes), err = errno;
    syscall(SYS_close, fd);
    errno = err;
    return rc;
}
int truncate64(const char *path, off_t bytes) { return truncate(path, bytes); }

int fallocate(int fd, int flags, off_t at, off_t bytes) {
    struct stat s;
    pthread_mutex_lock(&lock);
    ino_t ino = tracked_inode(fd, &s);
    int rc = syscall(SYS_fallocate, fd, flags, at, bytes), err = errno;
    if (!rc && ino && !(flags & FALLOC_FL_KEEP_SIZE) && at + bytes > s.st_size)
        journal_put(TRUNCATE, ino, at + bytes, 0, 0, 0, 0);
    pthread_mutex_unlock(&lock);
    errno = err;
    return rc;
}
int fallocate64(int fd, int flags, off_t at, off_t bytes) { return fallocate(fd, flags, at, bytes); }
int posix_fallocate(int fd, off_t at, off_t bytes) { return fallocate(fd, 0, at, bytes) ? errno : 0; }
int posix_fallocate64(int fd, off_t at, off_t bytes) { return posix_fallocate(fd, at, bytes); }

static int do_sync(int fd, long call) {
    struct stat s;
    if (!watched(fd)) return syscall(call, fd);
    pthread_mutex_lock(&lock);
    ino_t ino = tracked_inode(fd, &s);
    int rc = -1;
    if (!(ino && must_fail(FAIL_SYNC, fd))) {
        rc = skip_sync && ino ? 0 : syscall(call, fd);
        if (!rc && ino) journal_put(S_ISDIR(s.st_mode) ? SYNC_FOLDER : SYNC, ino, 0, 0, 0, 0, 0);
    }
    int err = errno;
    pthread_mutex_unlock(&lock);
    errno = err;
    return rc;
}
int fsync(int fd) { return do_sync(fd, SYS_fsync); }
int fdatasync(int fd) { return do_sync(fd, SYS_fdatasync); }

static void *do_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    struct stat s;
    if ((protection & PROT_WRITE) && (flags & MAP_SHARED) && watched(fd)) {
        pthread_mutex_lock(&lock);
        ino_t ino = tracked_inode(fd, &s);
        if (ino) journal_put(MAP, ino, offset, 0, 0, 0, 0);
        pthread_mutex_unlock(&lock);
    }
    return (void *)syscall(SYS_mmap, at, bytes, protection, flags, fd, offset);
}
void *mmap(void *at, size_t n, int p, int f, int fd, off_t o) { return do_mmap(at, n, p, f, fd, o); }
void *mmap64(void *at, size_t n, int p, int f, int fd, off_t o) { return do_mmap(at, n, p, f, fd, o); }

/* -- folders ------------------------------------------------------------------------------------------------------ */

static int do_rename(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    char a[PATH_MAX], b[PATH_MAX];
    struct stat s;
    int inside = below_root(from_dir, from, a) & below_root(to_dir, to, b);
    pthread_mutex_lock(&lock);
    ino_t ino = inside ? inode_at(from_dir, from, &s) : 0;
    int rc = syscall(SYS_renameat2, from_dir, from, to_dir, to, flags), err = errno;
    if (!rc && inside) journal_paths(RENAME, ino, a, b);
    pthread_mutex_unlock(&lock);
    errno = err;
    return rc;
}
int rename(const char *a, const char *b) { return do_rename(AT_FDCWD, a, AT_FDCWD, b, 0); }
int renameat(int d, const char *a, int e, const char *b) { return do_rename(d, a, e, b, 0); }
int renameat2(int d, const char *a, int e, const char *b, unsigned f) { return do_rename(d, a, e, b, f); }

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    char a[PATH_MAX], b[PATH_MAX];
    int inside = below_root(from_dir, from, a) & below_root(to_dir, to, b);
    pthread_mutex_lock(&lock);
    int rc = syscall(SYS_linkat, from_dir, from, to_dir, to, flags), err = errno;
    if (!rc && inside) journal_paths(LINK, 0, a, b);
    pthread_mutex_unlock(&lock);
    errno = err;
    return rc;
}
int link(const char *a, const char *b) { return linkat(AT_FDCWD, a, AT_FDCWD, b, 0); }

int unlinkat(int dir, const char *path, int flags) {
    char full[PATH_MAX];
    int inside = below_root(dir, path, full);
    pthread_mutex_lock(&lock);
    int rc = syscall(SYS_unlinkat, dir, path, flags), err = errno;
    if (!rc && inside) journal_paths(flags & AT_REMOVEDIR ? RMDIR : UNLINK, 0, full, 0);
    pthread_mutex_unlock(&lock);
    errno = err;
    return rc;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
    int rc = unlink(path);
    return rc && (errno == EISDIR || errno == EPERM) ? rmdir(path) : rc;
}

int mkdirat(int dir, const char *path, mode_t mode) {
    char full[PATH_MAX];
    struct stat s;
    int inside = below_root(dir, path, full);
    pthread_mutex_lock(&lock);
    int rc = syscall(SYS_mkdirat, dir, path, mode), err = errno;
    if (!rc && inside) journal_paths(MKDIR, inode_at(dir, path, &s), full, 0);
    pthread_mutex_unlock(&lock);
    errno = err;
    return rc;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
