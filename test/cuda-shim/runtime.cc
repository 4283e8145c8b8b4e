// CUDA's runtime on a processor. LOWRANK_SHIM_FAIL plays a failure, "what" or "what:n" (the n-th
// call from then on that could): no-driver, old-driver, no-device, malloc:n, host:n, launch:n,
// copy:n, sync:n. LOWRANK_SHIM_MEMORY is the device's memory in bytes.
#include <cstdlib>
#include <map>
#include <string>

#include "cuda_shim.h"

namespace {

constexpr size_t kMemory = size_t{1} << 32;

cudaError_t last = cudaSuccess;
std::map<void*, size_t> blocks;
size_t taken = 0;
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
  size_t colon = request.find(':');
  if (request.substr(0, colon) != what) return false;
  if (colon == std::string::npos) return true;
  return ++calls == std::atol(request.c_str() + colon + 1);
}

size_t capacity() {
  const char* text = std::getenv("LOWRANK_SHIM_MEMORY");
  return text ? static_cast<size_t>(std::atoll(text)) : kMemory;
}

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
  properties->major = 9;
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
  auto block = blocks.find(data);
  if (block == blocks.end()) return note(cudaErrorInvalidValue);
  taken -= block->second;
  blocks.erase(block);
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) {
  if (due("host") || posix_memalign(data, 256, bytes) != 0) return note(cudaErrorMemoryAllocation);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** data, size_t bytes) { return cudaHostAlloc(data, bytes, 0); }

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* data) {
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  if (due("copy")) return note(cudaErrorIllegalAddress);
  std::memmove(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = reinterpret_cast<cudaStream_t>(new char);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete reinterpret_cast<char*>(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return due("sync") ? note(cudaErrorLaunchFailure) : cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new char);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<char*>(event);
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
