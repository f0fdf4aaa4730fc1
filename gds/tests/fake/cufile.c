// cuFile of software, for the software driver in cuda.c, whose device memory is the CPU's.
//
// Built by the tests with: -DHANGS (opening the driver never returns), -DCRASHES, -DNO_DRIVER (not direct, and compatibility mode is
// forbidden), -DNO_UDEV (the file system is unknown), -DOLD (no parameters can be set), -DWRONG_BYTES.
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

typedef struct { int code, cuda; } status;
struct descr { int kind; union { int fd; void *handle; } handle; const void *ops; };

static bool compat_allowed = true, is_open;

status cuFileGetVersion(int *version) { *version = 1130; return (status){ 0, 0 }; }
#ifndef OLD
status cuFileSetParameterBool(int parameter, bool value) {
    if (parameter == 1) compat_allowed = value;
    return (status){ parameter == 1 || parameter == 2 ? 0 : 5022, 0 };
}
#endif
status cuFileDriverOpen(void) {
#ifdef HANGS
    for (;;) pause();
#endif
#ifdef CRASHES
    abort();
#endif
#ifdef NO_DRIVER
    if (!compat_allowed) return (status){ 5001, 0 };
#endif
    is_open = true;
    return (status){ 0, 0 };
}
status cuFileHandleRegister(void **out, struct descr *descr) {
#ifdef NO_UDEV
    return (status){ 5027, 0 };
#endif
    if (!is_open) return (status){ 5001, 0 };
    if (descr->kind != 1) return (status){ 5022, 0 };
    *out = (void *)(long)(descr->handle.fd + 1);
    return (status){ 0, 0 };
}
void cuFileHandleDeregister(void *handle) {}
// Device memory is not aligned for O_DIRECT as such; what is moved at once is bounded, as cuFile does it.
ssize_t cuFileRead(void *handle, void *base, size_t size, off_t offset, off_t at) {
    if (size > 1 << 20) size = 1 << 20;
    ssize_t moved = pread((long)handle - 1, (char *)base + at, size, offset);
#ifdef WRONG_BYTES
    if (moved > 0) ((char *)base)[at] ^= 1;
#endif
    return moved;
}
ssize_t cuFileWrite(void *handle, const void *base, size_t size, off_t offset, off_t at) {
    if (size > 1 << 20) size = 1 << 20;
    return pwrite((long)handle - 1, (const char *)base + at, size, offset);
}
