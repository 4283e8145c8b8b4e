// CUDA's runtime on a processor. LOWRANK_SHIM_FAIL plays a failure: no-driver, old-driver,
// no-device, old-device, or one of malloc, host, event, stream, launch, copy, sync, capture,
// instantiate, replay: of every call that could, with :n of the n-th from then on and those after
// it, with =n of the n-th alone. LOWRANK_SHIM_MEMORY is the device's memory in bytes.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda_shim.h"
#include "stream.h"

namespace {

constexpr size_t kMemory = size_t{1} << 32;

cudaError_t last = cudaSuccess;
std::map<void*, size_t> blocks;
size_t taken = 0;
// What was made and not destroyed.
long pinned = 0, streams = 0, events = 0, graphs = 0;
std::string played;  // the request that `calls` counts for
long calls = 0;

cudaError_t note(cudaError_t status) {
  if (status != cudaSuccess) last = status;
  return status;
}

// Whether the failure `what` is due at this call.
bool due(const char* what) {
  const char* wish = std::getenv("LOWRANK_SHIM_FAIL");
  std::string request = wish ? wish : "";
  if (request != played) {
    played = request;
    calls = 0;
  }
  size_t end = request.find_first_of(":=");
  if (request.substr(0, end) != what) return false;
  if (end == std::string::npos) return true;
  long n = std::atol(request.c_str() + end + 1);
  calls++;
  return request[end] == ':' ? calls >= n : calls == n;
}

size_t capacity() {
  const char* text = std::getenv("LOWRANK_SHIM_MEMORY");
  return text ? static_cast<size_t>(std::atoll(text)) : kMemory;
}

}  // namespace

struct cudaShimGraphExec {
  std::vector<std::function<void()>> work;
};

namespace {

// The stream that captures on this thread, if one does.
cudaShimStream* capturing = nullptr;

// A call that no capture can hold breaks it.
bool forbidden() {
  if (!capturing) return false;
  capturing->broken = true;
  last = cudaErrorStreamCaptureUnsupported;
  return true;
}

}  // namespace

void cudaShimEnqueue(cudaStream_t stream, std::function<void()> work) {
  stream->enqueue(std::move(work));
}

namespace {

// Says at the end of the process what was made and not destroyed, in the file that
// LOWRANK_SHIM_LEFT names.
struct Witness {
  ~Witness() {
    const char* path = std::getenv("LOWRANK_SHIM_LEFT");
    FILE* file = path ? std::fopen(path, "w") : nullptr;
    if (!file) return;
    std::fprintf(file, "blocks %zu, bytes %zu, pinned %ld, streams %ld, events %ld, graphs %ld",
                 blocks.size(), taken, pinned, streams, events, graphs);
    std::fclose(file);
  }
} witness;

}  // namespace

const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorGraphExecUpdateFailure:
      return "cudaErrorGraphExecUpdateFailure";
    default:
      return "cudaErrorUnknown";
  }
}

const char* cudaGetErrorString(cudaError_t) { return "played by the shim"; }

cudaError_t cudaGetLastError() {
  cudaError_t status = last;
  last = cudaSuccess;
  return status;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = due("no-driver") ? 0 : due("old-driver") ? 11080 : 13000;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  if (due("old-driver")) return note(cudaErrorInsufficientDriver);
  if (due("no-device")) return note(cudaErrorNoDevice);
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : note(cudaErrorInvalidDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "CUDA shim");
  properties->major = due("old-device") ? 7 : 9;
  properties->multiProcessorCount = 4;
  properties->totalGlobalMem = capacity();
  properties->sharedMemPerBlock = 48 << 10;
  properties->sharedMemPerBlockOptin = 227 << 10;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = capacity();
  *free = *total > taken ? *total - taken : 0;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  if (forbidden()) return cudaErrorStreamCaptureUnsupported;
  if (due("malloc") || taken + bytes > capacity()) return note(cudaErrorMemoryAllocation);
  // As much as was asked for and no more, so that AddressSanitizer sees every byte past it.
  if (posix_memalign(data, 256, bytes) != 0) return note(cudaErrorMemoryAllocation);
  std::memset(*data, 0xff, bytes);
  blocks[*data] = bytes;
  taken += bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  if (!data) return cudaSuccess;
  if (forbidden()) return cudaErrorStreamCaptureUnsupported;
  auto block = blocks.find(data);
  if (block == blocks.end()) return note(cudaErrorInvalidValue);
  taken -= block->second;
  blocks.erase(block);
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) {
  if (forbidden()) return cudaErrorStreamCaptureUnsupported;
  if (due("host") || posix_memalign(data, 256, bytes) != 0) return note(cudaErrorMemoryAllocation);
  pinned++;
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** data, size_t bytes) { return cudaHostAlloc(data, bytes, 0); }

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* data) {
  if (data) pinned--;
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  if (due("copy")) return note(cudaErrorIllegalAddress);
  cudaShimEnqueue(stream, [=] { std::memmove(to, from, bytes); });
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  cudaShimEnqueue(stream, [=] { std::memset(to, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  if (due("stream")) return note(cudaErrorMemoryAllocation);
  *stream = new cudaShimStream();
  streams++;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  streams--;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  if (forbidden()) return cudaErrorStreamCaptureUnsupported;
  return due("sync") ? note(cudaErrorLaunchFailure) : cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  if (due("event")) return note(cudaErrorMemoryAllocation);
  *event = reinterpret_cast<cudaEvent_t>(new char);
  events++;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaEventSynchronize(cudaEvent_t) {
  return forbidden() ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<char*>(event);
  events--;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (due("capture") || stream->captured) return note(cudaErrorStreamCaptureUnsupported);
  stream->captured = new cudaShimGraph();
  stream->broken = false;
  capturing = stream;
  graphs++;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = stream->captured;
  stream->captured = nullptr;
  capturing = nullptr;
  if (!stream->broken) return cudaSuccess;
  cudaGraphDestroy(*graph);
  *graph = nullptr;
  return note(cudaErrorStreamCaptureInvalidated);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (due("instantiate")) return note(cudaErrorMemoryAllocation);
  *exec = new cudaShimGraphExec{graph->work};
  graphs++;
  return cudaSuccess;
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
                                cudaGraphExecUpdateResultInfo* info) {
  *info = {};
  if (due("update") || exec->work.size() != graph->work.size()) {
    return note(cudaErrorGraphExecUpdateFailure);
  }
  exec->work = graph->work;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  if (due("replay")) return note(cudaErrorLaunchFailure);
  for (const std::function<void()>& work : exec->work) work();
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  if (graph) graphs--;
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  if (exec) graphs--;
  delete exec;
  return cudaSuccess;
}

// What CUDA checks of a launch.
cudaError_t cudaShimLaunch(dim3 grid, dim3 block, size_t shared) {
  uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.y > 65535 || grid.z > 65535 || shared > (227 << 10)) {
    return note(cudaErrorInvalidConfiguration);
  }
  return due("launch") ? note(cudaErrorLaunchFailure) : cudaSuccess;
}
