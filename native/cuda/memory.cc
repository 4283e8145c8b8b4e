#include "memory.h"

#include <cstring>

#include "../common/mapped_file.h"
#include "context.h"

namespace lowrank {

namespace {

constexpr size_t kChunk = size_t{16} << 20;  // bytes of one copy; two are under way

// Two pinned chunks, and an event for each that says its copy has left it.
struct Staging {
  char* chunk[2] = {};
  cudaEvent_t left[2] = {};

  explicit Staging(size_t bytes) {
    for (int i = 0; i < 2; i++) {
      cudaCheck("map", cudaMallocHost(reinterpret_cast<void**>(&chunk[i]), bytes));
      cudaCheck("map", cudaEventCreateWithFlags(&left[i], cudaEventDisableTiming));
    }
  }
  ~Staging() {
    for (int i = 0; i < 2; i++) {
      if (left[i]) cudaEventDestroy(left[i]);
      if (chunk[i]) cudaFreeHost(chunk[i]);
    }
  }
};

}  // namespace

char* DeviceMemory::obtain(uint64_t capacity) {
  void* data = nullptr;
  cudaError_t status = cudaMalloc(&data, capacity > 0 ? capacity : 1);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // taken note of: later launches do not report it again
    return nullptr;
  }
  cudaCheck("alloc", status);
  return static_cast<char*>(data);
}

void DeviceMemory::release(char* data, uint64_t) { cudaFree(data); }

char* DeviceMemory::obtainFile(const std::string& path, uint64_t& bytes) {
  size_t size = 0;
  char* from = static_cast<char*>(mapFile(path, size));
  char* to = nullptr;
  try {
    to = obtain(size);
    if (!to)
      throw RangeError("[map] expected memory for " + std::to_string(size) + " bytes, " +
                       shortage());
    Staging staging(kChunk < size ? kChunk : size + 1);
    for (size_t at = 0, i = 0; at < size; at += kChunk, i ^= 1) {
      size_t n = size - at < kChunk ? size - at : kChunk;
      cudaCheck("map", cudaEventSynchronize(staging.left[i]));
      std::memcpy(staging.chunk[i], from + at, n);
      cudaCheck("map",
                cudaMemcpyAsync(to + at, staging.chunk[i], n, cudaMemcpyHostToDevice, stream_));
      cudaCheck("map", cudaEventRecord(staging.left[i], stream_));
    }
    cudaCheck("map", cudaStreamSynchronize(stream_));
  } catch (...) {
    if (to) release(to, size);
    unmapFile(from, size);
    throw;
  }
  unmapFile(from, size);
  bytes = size;
  return to;
}

std::string DeviceMemory::shortage() const {
  static const char* const names[kPurposes] = {"frozen",    "trainable",   "gradients",
                                               "optimizer", "activations", "workspace"};
  size_t free = 0, total = 0;
  std::string text = "received none from the device";
  if (cudaMemGetInfo(&free, &total) == cudaSuccess) {
    text += " (" + std::to_string(free) + " of " + std::to_string(total) + " bytes free)";
  }
  text += "; held:";
  const Books& b = books();
  for (int p = 0; p < kPurposes; p++) {
    if (b.live[p]) text += std::string(" ") + names[p] + " " + std::to_string(b.live[p]) + ",";
  }
  return text + " idle " + std::to_string(b.pooled) +
         ". To fit: a smaller batch or sequence, gradient checkpointing, a base in bf16";
}

}  // namespace lowrank
