/* A libcuda.so.1 whose memory is the host's: what the driver's API asks of callers who share memory, and no more.
   Counts what lives; the call named by `failing` finds no memory. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef unsigned long long u64;
enum { OUT_OF_MEMORY = 2, INVALID_VALUE = 1, INVALID_CONTEXT = 201, NOT_FOUND = 500, GRANULE = 2 << 20, CONTEXT = 0xc0 };
struct location { int type, id; };
struct properties { int type, handle_types; struct location location; void *win32; unsigned char flags[8]; };
struct access { struct location location; int flags; };

int handles, mappings, ranges; /* alive */
char failing[64];
static void *current;

#define CALL if (!strcmp(failing, __func__)) return OUT_OF_MEMORY
#define IN_CONTEXT CALL; NEED_OR(current == (void *)CONTEXT, INVALID_CONTEXT)
#define NEED_OR(rule, error) if (!(rule)) return error
#define NEED(rule) NEED_OR(rule, INVALID_VALUE)
#define OF_DEVICE_0(p) ((p).type == 1 && (p).id == 0)

int cuInit(unsigned flags) { CALL; return 0; }
int cuDeviceGet(int *device, int ordinal) { CALL; *device = ordinal; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { CALL; *context = (void *)CONTEXT; return 0; }
int cuCtxSetCurrent(void *context) { CALL; current = context; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { CALL; *value = attribute == 103; return 0; }
int cuMemGetAllocationGranularity(size_t *size, const struct properties *p, int option) {
    CALL; NEED(OF_DEVICE_0(p->location)); *size = GRANULE; return 0;
}
int cuMemCreate(u64 *handle, size_t size, const struct properties *p, u64 flags) {
    IN_CONTEXT; NEED(p->type == 1 && p->handle_types == 1 && OF_DEVICE_0(p->location) && size && size % GRANULE == 0);
    *handle = memfd_create("card", MFD_CLOEXEC); handles++; return ftruncate(*handle, size);
}
int cuMemExportToShareableHandle(void *file, u64 handle, int type, u64 flags) {
    IN_CONTEXT; NEED(type == 1); *(int *)file = dup(handle); return 0;
}
int cuMemImportFromShareableHandle(u64 *handle, void *file, int type) {
    IN_CONTEXT; NEED(type == 1); *handle = dup((int)(long)file); handles++; return 0;
}
int cuMemRelease(u64 handle) { CALL; handles--; return close(handle); }
int cuMemAddressReserve(u64 *address, size_t size, size_t alignment, u64 wanted, u64 flags) {
    IN_CONTEXT; NEED(size && size % GRANULE == 0);
    *address = (u64)mmap(0, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); ranges++; return 0;
}
int cuMemAddressFree(u64 address, size_t size) { CALL; ranges--; return munmap((void *)address, size); }
int cuMemMap(u64 address, size_t size, size_t offset, u64 handle, u64 flags) {
    IN_CONTEXT; NEED(offset == 0 && lseek(handle, 0, SEEK_END) >= (off_t)size);
    mmap((void *)address, size, PROT_NONE, MAP_SHARED | MAP_FIXED, handle, 0); mappings++; return 0;
}
int cuMemUnmap(u64 address, size_t size) {
    IN_CONTEXT; mmap((void *)address, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    mappings--; return 0;
}
int cuMemSetAccess(u64 address, size_t size, const struct access *a, size_t count) {
    IN_CONTEXT; NEED(count == 1 && OF_DEVICE_0(a->location) && a->flags == 3);
    return mprotect((void *)address, size, PROT_READ | PROT_WRITE);
}
int cuMemcpyDtoDAsync_v2(u64 target, u64 source, size_t size, void *stream) {
    IN_CONTEXT; memcpy((void *)target, (void *)source, size); return 0;
}
int cuGetErrorName(int status, const char **name) { *name = "?"; return 0; }

/* How the bindings find the calls. */
int cuGetProcAddress_v2(const char *name, void **call, int version, u64 flags, int *status) {
    *call = dlsym(dlopen("libcuda.so.1", RTLD_LAZY), strcmp(name, "cuMemcpyDtoDAsync") ? name : "cuMemcpyDtoDAsync_v2");
    return *call ? 0 : NOT_FOUND;
}
int cuGetProcAddress(const char *name, void **call, int version, u64 flags) {
    return cuGetProcAddress_v2(name, call, version, flags, 0);
}
