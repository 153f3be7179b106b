// A driver that does nothing, for machines without one: every function that is looked up, and what FAKE_DRIVER asks for.
//   none   no GPU            old    a driver of CUDA 11.4       start  does not start
//   volta  sm_70             image  no machine code loads       fine   nothing else
//   lacks  (compiled with -DLACKS) a driver without the newest function
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int asked(const char* word) {
    const char* given = getenv("FAKE_DRIVER");
    return given && strcmp(given, word) == 0;
}
#define NOTHING(name) int name() { return 0; }
int cuInit(unsigned flags) { return asked("start") ? 999 : 0; }
int cuDriverGetVersion(int* version) { return *version = asked("old") ? 11040 : 12090, 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetCount(int* count) { return *count = !asked("none"), 0; }
int cuDeviceGetName(char* name, int length, int device) { return snprintf(name, length, "Fake A100"), 0; }
// Attributes: 16 multiprocessors, 38 second-level cache, 75 and 76 compute capability.
int cuDeviceGetAttribute(int* value, int which, int device) {
    const int major = asked("volta") ? 7 : 8;
    return *value = which == 16 ? 108 : which == 38 ? 1 << 20 : which == 75 ? major : 0, 0;
}
int cuDeviceTotalMem_v2(size_t* bytes, int device) { return *bytes = (size_t)80 << 30, 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { return *context = (void*)16, 0; }
NOTHING(cuDevicePrimaryCtxRelease_v2) NOTHING(cuCtxSetCurrent)
int cuGetErrorName(int code, const char** text) { return *text = "CUDA_ERROR_FAKE", 0; }
int cuGetErrorString(int code, const char** text) {
    return *text = code == 209 ? "no kernel image is available for execution on the device" : "a fake error", 0;
}
int cuMemAlloc_v2(unsigned long long* at, size_t bytes) { return *at = 1 << 20, 0; }
int cuMemGetInfo_v2(size_t* free, size_t* all) {
    return *free = *all = (size_t)80 << 30, 0;
}
NOTHING(cuMemFree_v2) NOTHING(cuMemcpyHtoDAsync_v2) NOTHING(cuMemcpyDtoHAsync_v2) NOTHING(cuMemcpyDtoDAsync_v2)
NOTHING(cuMemsetD8Async)
int cuModuleLoadData(void** module, const void* image) { return *module = (void*)16, asked("image") ? 209 : 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) { return *function = (void*)16, 0; }
NOTHING(cuModuleUnload) NOTHING(cuFuncSetAttribute) NOTHING(cuLaunchKernel)
int cuStreamCreate(void** stream, unsigned flags) { return *stream = (void*)16, 0; }
NOTHING(cuStreamSynchronize) NOTHING(cuStreamQuery) NOTHING(cuStreamWaitEvent) NOTHING(cuStreamBeginCapture_v2)
int cuStreamEndCapture(void* stream, void** graph) { return *graph = (void*)16, 0; }
int cuGraphInstantiateWithFlags(void** made, void* graph, unsigned long long flags) { return *made = (void*)16, 0; }
NOTHING(cuGraphLaunch) NOTHING(cuGraphDestroy)
int cuEventCreate(void** event, unsigned flags) { return *event = (void*)16, 0; }
NOTHING(cuEventRecord) NOTHING(cuEventSynchronize) NOTHING(cuEventDestroy_v2)
int cuEventElapsedTime(float* ms, void* from, void* to) { return *ms = 1.0f, 0; }
int cuEventElapsedTime_v2(float* ms, void* from, void* to) { return *ms = 1.0f, 0; }
#ifndef LACKS
NOTHING(cuTensorMapEncodeTiled)
#endif
