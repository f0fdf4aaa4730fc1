// cuFile of software, for the software driver in cuda.c, whose device memory is the CPU's. It really reads and writes, and is strict about
// what it is asked for: who breaks a rule of cufile.h is told so, or stopped where the real one would go on with freed memory.
//
// Built by the tests with: -DHANGS (opening the driver never returns), -DCRASHES, -DNO_DRIVER (not direct, and compatibility mode is
// forbidden), -DNO_UDEV (the file system is unknown), -DOLD (no parameters can be set), -DWRONG_BYTES, -DNO_SLABS (no memory can be mapped);
// of batches -DNO_BATCH (there are no functions for them), -DBATCH_SETUP_FAILS, -DBATCH_HANGS, -DBATCH_CRASHES.
// Trouble that begins when the test asks for it, so that the probe in another process meets none: see `fake_trouble_*`.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

typedef struct { int code, cuda; } status;
struct descr { int kind; union { int fd; void *handle; } handle; const void *ops; };

enum { NOT_OPEN = 5001, NOT_DIRECT = 5008, BAD_MEMORY = 5013, NO_BAR = 5016, NO_O_DIRECT = 5019, BAD_VALUE = 5022, NO_FILE_SYSTEM = 5027, TWICE = 5028 };

#define OK (status){ 0, 0 }
#define NO(code) (status){ code, 0 }
#define MOST (1 << 20) // of one call: what is moved at once is bounded, as cuFile does it

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool compat_allowed = true, compat_forced, p2pdma, is_open;

// Files by handle, which is an index: what is used after it was given back is found.
enum { FILES = 4096, SLABS = 64 };
static struct { int fd; bool used; } files[FILES];
static struct { char *base; size_t len; } slabs[SLABS];
static int opens, files_open, files_seen, slabs_known, slab_calls, in_slabs, moves, batches_alive, batch_transfers, batch_most, looks;

// What tests ask it.
int fake_opens(void) { return opens; }
int fake_files(void) { return files_open; }
int fake_slabs(void) { return slabs_known; }
int fake_slab_calls(void) { return slab_calls; }
int fake_in_slabs(void) { return in_slabs; }
int fake_moves(void) { return moves; }
int fake_batches_alive(void) { return batches_alive; }
int fake_batch_transfers(void) { return batch_transfers; }
int fake_batch_most(void) { return batch_most; }
int fake_compat(void) { return compat_forced; }
int fake_p2pdma(void) { return p2pdma; }

// Each third file is not direct; each third call fails; each third transfer of a batch fails; each second look at a batch says nothing; no
// batch is taken, and none of its transfers enqueued; the same, but the first half of them is under way; no look says anything, and nothing
// can be cancelled; batches do nothing before they are cancelled; they cannot be cancelled; opening the driver never returns.
static bool bad_open, bad_files, bad_calls, bad_transfers, bad_looks, bad_batches, half, silent, idle, bad_cancel;
int fake_trouble_open(void) { return bad_open = true; }
int fake_trouble_files(void) { return bad_files = true; }
int fake_trouble_calls(void) { return bad_calls = true; }
int fake_trouble_transfers(void) { return bad_transfers = true; }
int fake_trouble_looks(void) { return bad_looks = true; }
int fake_trouble_batches(void) { return bad_batches = true; }
int fake_trouble_half(void) { return half = true; }
int fake_trouble_cancel(void) { return bad_cancel = true; }
int fake_trouble_silent(void) { return silent = true; }
int fake_trouble_idle(void) { return idle = true; }
int fake_trouble_ends(void) { return silent = idle = half = bad_cancel = false; }

static void stop(const char *why) {
    fprintf(stderr, "cuFile of software: %s\n", why);
    abort();
}

status cuFileGetVersion(int *version) { *version = 1130; return OK; }
#ifndef OLD
status cuFileSetParameterBool(int parameter, bool value) {
    if (is_open) return NO(BAD_VALUE);
    if (parameter == 1) compat_allowed = value;
    else if (parameter == 2) compat_forced = value;
    else if (parameter == 7) p2pdma = value;
    else return NO(BAD_VALUE);
    return OK;
}
#endif
status cuFileDriverOpen(void) {
    __sync_add_and_fetch(&opens, 1);
#ifdef HANGS
    bad_open = true;
#endif
    while (bad_open) pause();
#ifdef CRASHES
    abort();
#endif
#ifdef NO_DRIVER
    if (!compat_allowed) return NO(NOT_OPEN);
#endif
    is_open = true;
    return OK;
}
status cuFileHandleRegister(void **out, struct descr *descr) {
#ifdef NO_UDEV
    return NO(NO_FILE_SYSTEM);
#endif
    if (!is_open) return NO(NOT_OPEN);
    if (descr->kind != 1) return NO(BAD_VALUE);
    int flags = fcntl(descr->handle.fd, F_GETFL);
    if (flags < 0) return NO(BAD_VALUE);
    if (!compat_forced && !(flags & O_DIRECT)) return NO(NO_O_DIRECT);
    pthread_mutex_lock(&lock);
    files_seen++;
    if (bad_files && files_seen % 3 == 0) {
        pthread_mutex_unlock(&lock);
        return NO(NOT_DIRECT);
    }
    int number = 0;
    while (number < FILES && files[number].used) number++;
    if (number == FILES) stop("too many files are registered");
    files[number].fd = descr->handle.fd, files[number].used = true;
    files_open++;
    pthread_mutex_unlock(&lock);
    *out = (void *)(long)(number + 1);
    return OK;
}
void cuFileHandleDeregister(void *handle) {
    pthread_mutex_lock(&lock);
    long number = (long)handle - 1;
    if (number < 0 || number >= FILES || !files[number].used) stop("a file was given back twice, or never registered");
    files[number].used = false;
    files_open--;
    pthread_mutex_unlock(&lock);
}
status cuFileBufRegister(const void *base, size_t len, int flags) {
#ifdef NO_SLABS
    return NO(NO_BAR);
#endif
    if (!is_open) return NO(NOT_OPEN);
    if (!len || flags) return NO(BAD_VALUE);
    pthread_mutex_lock(&lock);
    slab_calls++;
    int code = BAD_VALUE;
    for (int i = 0; i < SLABS && code == BAD_VALUE; i++)
        if (slabs[i].len && (char *)base < slabs[i].base + slabs[i].len && slabs[i].base < (char *)base + len) code = TWICE;
    for (int i = 0; i < SLABS && code == BAD_VALUE; i++)
        if (!slabs[i].len) slabs[i].base = (char *)base, slabs[i].len = len, slabs_known++, code = 0;
    pthread_mutex_unlock(&lock);
    return NO(code);
}
status cuFileBufDeregister(const void *base) {
    pthread_mutex_lock(&lock);
    int code = BAD_VALUE;
    for (int i = 0; i < SLABS && code; i++)
        if (slabs[i].len && slabs[i].base == base) slabs[i].len = 0, slabs_known--, code = 0;
    pthread_mutex_unlock(&lock);
    return NO(code);
}

// Moves at most MOST bytes; bytes, or a negative code. An offset in memory is allowed in what is registered, and there only.
static ssize_t move(bool write, void *handle, char *base, size_t size, off_t offset, off_t at) {
    pthread_mutex_lock(&lock);
    long number = (long)handle - 1;
    if (number < 0 || number >= FILES || !files[number].used) stop("a transfer on a file that is not registered");
    int fd = files[number].fd, found = 0;
    moves++;
    for (int i = 0; i < SLABS; i++)
        if (slabs[i].len && base == slabs[i].base) {
            if (at < 0 || (size_t)at + size > slabs[i].len) stop("a transfer past the end of its slab");
            found = 1;
        }
    in_slabs += found;
    pthread_mutex_unlock(&lock);
    if (at && !found && !compat_forced) return -BAD_MEMORY;
    if (!compat_forced && (size % 4096 || offset % 4096)) stop("a direct transfer that is not aligned");
    if (size > MOST) size = MOST;
    if (write) return pwrite(fd, base + at, size, offset);
    ssize_t moved = pread(fd, base + at, size, offset);
#ifdef WRONG_BYTES
    if (moved > 0) base[at] ^= 1;
#endif
    return moved;
}
static ssize_t call(bool write, void *handle, char *base, size_t size, off_t offset, off_t at) {
    static int calls;
    if (bad_calls && __sync_add_and_fetch(&calls, 1) % 3 == 0) return -5011;
    return move(write, handle, base, size, offset, at);
}
ssize_t cuFileRead(void *handle, void *base, size_t size, off_t offset, off_t at) { return call(false, handle, base, size, offset, at); }
ssize_t cuFileWrite(void *handle, const void *base, size_t size, off_t offset, off_t at) { return call(true, handle, (char *)base, size, offset, at); }

#ifndef NO_BATCH
enum { WAITING = 1, INVALID = 4, CANCELED = 8, COMPLETE = 16, FAILED = 64, ROOM = 128 };
struct params { int mode; struct { void *base; off_t file_offset, offset; size_t size; } batch; void *file; int opcode; void *cookie; };
struct event { void *cookie; int status; size_t moved; };
_Static_assert(sizeof(struct params) == 64 && sizeof(struct event) == 24, "as in cufile.h");
struct batch { unsigned room, left, refused; struct params *todo[ROOM]; void *not_begun[ROOM]; bool cancelled; };
static struct batch *last[FILES];
static int batches_seen;

// What was left of all batches is done after all, as by a drive that comes back: how many transfers that were. Who has freed memory, or
// given a file back, is found.
int fake_late(void) {
    int count = 0;
    for (int i = 0; i < batches_seen; i++)
        while (last[i] && last[i]->left) {
            struct params *p = last[i]->todo[--last[i]->left];
            if (move(p->opcode, p->file, p->batch.base, p->batch.size, p->batch.file_offset, p->batch.offset) < 0) stop("too late");
            count++;
        }
    return count;
}

status cuFileBatchIOSetUp(void **out, unsigned room) {
#ifdef BATCH_SETUP_FAILS
    return NO(5030);
#endif
    if (!is_open) return NO(NOT_OPEN);
    // More can hang inside of a submit.
    if (!room || room > 64) return NO(BAD_VALUE);
    struct batch *b = calloc(1, sizeof *b);
    b->room = room;
    pthread_mutex_lock(&lock);
    if (batches_seen < FILES) last[batches_seen++] = b;
    pthread_mutex_unlock(&lock);
    __sync_add_and_fetch(&batches_alive, 1);
    *out = b;
    return OK;
}
status cuFileBatchIOSubmit(void *handle, unsigned count, struct params *params, unsigned flags) {
    struct batch *b = handle;
#ifdef BATCH_HANGS
    for (;;) pause();
#endif
#ifdef BATCH_CRASHES
    abort();
#endif
    if (b->left) stop("a batch was submitted while the last one was under way");
    if (b->cancelled) stop("a batch was used again after it was cancelled");
    if (!count || count > b->room || flags) return NO(BAD_VALUE);
    for (unsigned i = 0; i < count; i++) {
        if (params[i].mode != 1 || (params[i].opcode != 0 && params[i].opcode != 1)) return NO(BAD_VALUE);
        b->todo[i] = &params[i];
    }
    b->left = count;
    if (bad_batches || half) {
        b->left = half ? count / 2 : 0;
        for (unsigned i = b->left; i < count; i++) b->not_begun[b->refused++] = params[i].cookie;
        return NO(5030);
    }
    pthread_mutex_lock(&lock);
    if ((int)count > batch_most) batch_most = count;
    pthread_mutex_unlock(&lock);
    return OK;
}
// At most three end at a look, the last first: bytes move here, and not before, so that memory that was freed too early shows.
status cuFileBatchIOGetStatus(void *handle, unsigned least, unsigned *count, struct event *events, struct timespec *timeout) {
    struct batch *b = handle;
    unsigned room = *count, given = 0;
    *count = 0;
    if (!room || !timeout || least > room) return NO(BAD_VALUE);
    int look = __sync_add_and_fetch(&looks, 1);
    if (silent || (bad_looks && look % 2)) return NO(5030);
    while (b->refused && given < room && given < 3)
        events[given++] = (struct event){ .cookie = b->not_begun[--b->refused], .status = INVALID, .moved = (size_t)-5022 };
    *count = given;
    if (given || (idle && !b->cancelled)) return OK;
    // Now and then one that is still waiting, and what was told before, as a careless library might.
    while (b->left && given < room && given < 3) {
        struct params *p = b->todo[--b->left];
        struct event *e = &events[given++];
        int transfer = __sync_add_and_fetch(&batch_transfers, 1);
        *e = (struct event){ .cookie = p->cookie, .status = COMPLETE };
        if (b->cancelled) {
            e->status = CANCELED;
            continue;
        }
        if (bad_transfers && transfer % 3 == 0) {
            e->status = FAILED, e->moved = (size_t)-EIO;
            continue;
        }
        ssize_t moved = move(p->opcode, p->file, p->batch.base, p->batch.size, p->batch.file_offset, p->batch.offset);
        if (moved < 0) e->status = FAILED, moved = moved == -1 ? -errno : moved;
        e->moved = (size_t)moved;
    }
    if (look % 2 && given < room && given) events[given] = events[0], given++;
    if (b->left && given < room) events[given++] = (struct event){ .cookie = b->todo[0]->cookie, .status = WAITING };
    *count = given;
    return OK;
}
status cuFileBatchIOCancel(void *handle) {
    struct batch *b = handle;
    if (silent || bad_cancel) return NO(5030);
    // A look tells how each has ended.
    b->cancelled = true;
    return OK;
}
void cuFileBatchIODestroy(void *handle) {
    struct batch *b = handle;
    if (b->left) stop("a batch was destroyed with transfers under way");
    __sync_sub_and_fetch(&batches_alive, 1);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < batches_seen; i++)
        if (last[i] == b) last[i] = NULL;
    pthread_mutex_unlock(&lock);
    free(b);
}
#endif
