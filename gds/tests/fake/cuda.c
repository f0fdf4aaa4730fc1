// A driver of software: libcuda's functions as far as saltern-gds uses them, on the CPU's memory.
//
// It is as lazy as a GPU may be: what is queued on a stream happens bit by bit, when somebody asks for an event, and never
// before. So a slot that is used again too early, or an event that is not waited for, shows as wrong bytes.
//
// Built by the tests with: -DDEVICES=n (0: a driver without a GPU), -DFAIL_EVERY=n (each n-th copy is refused),
// -DLACKS_A_SYMBOL (an old driver), -DNO_BATCH (a driver before 12.8), -DREFUSES_BATCH (it has them, and not for this memory).
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef DEVICES
#define DEVICES 1
#endif

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, NOT_READY = 600, ILLEGAL_ADDRESS = 700, NOT_SUPPORTED = 801 };

// Bytes of a copy that happen at each look.
#define BYTES_PER_LOOK (300 << 10)

typedef struct stream stream;
typedef struct event { stream *on; unsigned long recorded, passed; int held; } event;
typedef struct op { struct op *next; void *to; const void *from; size_t len; event *event; unsigned long number; } op;
struct stream { op *first, **last; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
// Contexts of a thread, the current one on top: 0 is none, `foreign` that of somebody else in this process.
static _Thread_local void *current[16];
static _Thread_local int top;
static int foreign;
static int context, retained, registered, allocated, copies, batches, batch_most, refused;
// While set, the work on the default streams, which is the caller's, does not end. While stalled, nothing that was queued goes on.
static int held, stalled;
// The context has failed, as after an access to an address that is none: from then on every call in it says so, and nothing runs.
static int broken;
// No copy can be queued that touches this byte of the GPU's memory. A batch with one fails, and does not tell which when it is silent.
static const char *bad_byte;
static int failed_batches, silent_batches;
static int touches(const char *from, size_t len) { return bad_byte && from <= bad_byte && bad_byte < from + len; }

// What tests ask it.
int fake_retained(void) { return retained; }
int fake_registered(void) { return registered; }
int fake_allocated(void) { return allocated; }
int fake_batches(void) { return batches; }
int fake_batch_most(void) { return batch_most; }
int fake_copied(void) { return copies; }
int fake_hold(void) { return held = 1; }
int fake_release(void) { return held = 0; }
int fake_stall(void) { return stalled = 1; }
int fake_break_context(void) { return broken = 1; }
int fake_refused(void) { return refused; }
int fake_failed_batches(void) { return failed_batches; }
int fake_silent_batches(void) { return silent_batches = 1; }
void fake_break(unsigned long address) { bad_byte = (const char *)address; }
// Another GPU's context, which whoever calls this has made current on its thread; and whether it still is.
int fake_use_foreign(void) { current[top = 0] = &foreign; return 0; }
int fake_is_foreign(void) { return top == 0 && current[0] == &foreign; }

static void push(stream *s, op o) {
    op *added = malloc(sizeof *added);
    *added = o;
    added->next = NULL;
    *s->last = added;
    s->last = &added->next;
}

// Does what is next on a stream, at most so many bytes; 0 when it cannot go on.
static void run(stream *s, size_t most) {
    if (stalled) return;
    while (s->first) {
        op *o = s->first;
        if (o->to) {
            size_t len = o->len < most ? o->len : most;
            memcpy(o->to, o->from, len);
            o->to = (char *)o->to + len, o->from = (const char *)o->from + len, o->len -= len, most -= len;
            if (o->len) return;
        } else {
            o->event->passed = o->number;
        }
        s->first = o->next;
        if (!s->first) s->last = &s->first;
        free(o);
    }
}

#define LEAVE(code) { int result = (code); pthread_mutex_unlock(&lock); return result; }
#define ENTER if (current[top] != &context) return 201; pthread_mutex_lock(&lock); if (broken) { refused++; LEAVE(ILLEGAL_ADDRESS) }

int cuInit(unsigned flags) { return DEVICES ? SUCCESS : NO_DEVICE; }
int cuDriverGetVersion(int *version) { *version = 12080; return SUCCESS; }
int cuGetErrorName(int code, const char **name) {
    *name = code == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
    return *name ? SUCCESS : INVALID_VALUE;
}
int cuDeviceGetCount(int *count) { *count = DEVICES; return SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return SUCCESS; }
int cuDeviceGetName(char *name, int len, int device) { snprintf(name, len, "Software GPU"); return SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 116; return SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 1ul << 30; return SUCCESS; }
int cuDeviceGetPCIBusId(char *id, int len, int device) { snprintf(id, len, "0000:3B:00.0"); return SUCCESS; }
int cuDevicePrimaryCtxRetain(void **out, int device) { retained++; *out = &context; return SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int device) { retained--; return SUCCESS; }
int cuCtxSetCurrent(void *to) { current[top] = to; return SUCCESS; }
int cuCtxPushCurrent_v2(void *to) {
    if (!to || top == 15) return INVALID_VALUE;
    current[++top] = to;
    return SUCCESS;
}
int cuCtxPopCurrent_v2(void **from) {
    if (!top) return 201;
    *from = current[top--];
    return SUCCESS;
}
int cuMemAlloc_v2(unsigned long *address, size_t len) {
    ENTER void *memory = NULL;
    if (posix_memalign(&memory, 4096, len)) LEAVE(OUT_OF_MEMORY)
    allocated++;
    *address = (unsigned long)memory;
    LEAVE(SUCCESS)
}
int cuMemFree_v2(unsigned long address) { ENTER free((void *)address); allocated--; LEAVE(SUCCESS) }
// Page-aligned, as the real one.
int cuMemHostAlloc(void **out, size_t len, unsigned flags) { ENTER LEAVE(posix_memalign(out, 4096, len) ? OUT_OF_MEMORY : SUCCESS) }
int cuMemFreeHost(void *memory) { ENTER free(memory); LEAVE(SUCCESS) }
int cuMemHostRegister_v2(void *memory, size_t len, unsigned flags) { ENTER registered++; LEAVE(SUCCESS) }
int cuMemHostUnregister(void *memory) { ENTER registered--; LEAVE(SUCCESS) }
int cuMemcpyHtoD_v2(unsigned long to, const void *from, size_t len) { ENTER memcpy((void *)to, from, len); LEAVE(SUCCESS) }
int cuMemcpyDtoH_v2(void *to, unsigned long from, size_t len) { ENTER memcpy(to, (void *)from, len); LEAVE(SUCCESS) }
static int copy(void *to, const void *from, size_t len, stream *s) {
    copies++;
#ifdef FAIL_EVERY
    if (copies % FAIL_EVERY == 0) return ILLEGAL_ADDRESS;
#endif
    if (touches(to, len) || touches(from, len)) return INVALID_VALUE;
    if (len) push(s, (op){ .to = to, .from = from, .len = len });
    return SUCCESS;
}
int cuMemcpyHtoDAsync_v2(unsigned long to, const void *from, size_t len, stream *s) { ENTER LEAVE(copy((void *)to, from, len, s)) }
int cuMemcpyDtoHAsync_v2(void *to, unsigned long from, size_t len, stream *s) { ENTER LEAVE(copy(to, (void *)from, len, s)) }
#ifndef NO_BATCH
struct attributes { int order, hints[4]; unsigned flags; };
int cuMemcpyBatchAsync(unsigned long *to, unsigned long *from, size_t *sizes, size_t count, struct attributes *attributes,
                       size_t *indices, size_t kinds, size_t *failed, stream *s) {
    ENTER
    if (!count || kinds != 1 || indices[0] != 0 || attributes->order != 1 || attributes->flags) LEAVE(INVALID_VALUE)
    batches++;
    if ((int)count > batch_most) batch_most = count;
#ifdef REFUSES_BATCH
    // Half of it was queued.
    for (size_t i = 0; i < count / 2; i++) copy((void *)to[i], (void *)from[i], sizes[i], s);
    LEAVE(NOT_SUPPORTED)
#endif
    // Nothing is queued when one is seen to be wrong, as the real one may do it: what is before it has not happened.
    for (size_t i = 0; i < count; i++)
        if (touches((void *)to[i], sizes[i]) || touches((void *)from[i], sizes[i])) {
            failed_batches++;
            *failed = silent_batches ? ~0ul : i;
            LEAVE(INVALID_VALUE)
        }
    for (size_t i = 0; i < count; i++) {
        int code = copy((void *)to[i], (void *)from[i], sizes[i], s);
        if (code) { *failed = i; LEAVE(code) }
    }
    LEAVE(SUCCESS)
}
#endif
int cuStreamCreate(stream **out, unsigned flags) {
    ENTER *out = calloc(1, sizeof **out);
    (*out)->last = &(*out)->first;
    LEAVE(flags == 1 ? SUCCESS : INVALID_VALUE)
}
int cuStreamSynchronize(stream *s) { ENTER run(s, ~0ul); LEAVE(s->first ? ILLEGAL_ADDRESS : SUCCESS) }
int cuStreamDestroy_v2(stream *s) { ENTER run(s, ~0ul); free(s); LEAVE(SUCCESS) }
int cuEventCreate(event **out, unsigned flags) { ENTER *out = calloc(1, sizeof **out); LEAVE(flags == 2 ? SUCCESS : INVALID_VALUE) }
// Not freed: what waits for it may come later.
int cuEventDestroy_v2(event *e) { return SUCCESS; }
int cuEventRecord(event *e, stream *s) {
    // The default streams (0; 1 and 2 are CU_STREAM_LEGACY and CU_STREAM_PER_THREAD) have no work here.
    if ((unsigned long)s <= 2) s = NULL;
    ENTER e->recorded++;
    e->on = s;
    e->held = !s && held;
    if (s) push(s, (op){ .event = e, .number = e->recorded });
    else if (!held) e->passed = e->recorded;
    LEAVE(SUCCESS)
}
int cuEventQuery(event *e) {
    ENTER if (e->on && e->passed < e->recorded) run(e->on, BYTES_PER_LOOK);
    if (e->held && !held) e->passed = e->recorded;
    LEAVE(e->passed < e->recorded ? NOT_READY : SUCCESS)
}
#ifndef LACKS_A_SYMBOL
int cuPointerGetAttribute(void *out, int attribute, unsigned long address) {
    *(int *)out = 0;
    return attribute == 9 && address ? SUCCESS : INVALID_VALUE;
}
#endif
