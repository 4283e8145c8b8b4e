#include "memory.h"

#include <algorithm>

#include "../common/mapped_file.h"
#include "context.h"

namespace lowrank {

namespace {

constexpr uint64_t kLeastSegment = uint64_t{16} << 20;
constexpr uint64_t kMostSegment = uint64_t{256} << 20;

}  // namespace

char* DeviceMemory::obtain(uint64_t capacity) {
  void* data = nullptr;
  cudaError_t status = cudaMalloc(&data, capacity > 0 ? capacity : 1);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // taken note of: later launches do not report it again
    return nullptr;
  }
  cudaCheck("alloc", status);
  obtained_ += capacity;
  return static_cast<char*>(data);
}

void DeviceMemory::release(char* data, uint64_t capacity) {
  cudaFree(data);
  obtained_ -= capacity;
}

// A share of what there is, so that a small model takes little, and a big one few pieces.
uint64_t DeviceMemory::segmentBytes() const {
  return std::clamp(obtained_ / 4, kLeastSegment, kMostSegment);
}

char* DeviceMemory::obtainFile(const std::string& path, uint64_t& bytes) {
  size_t size = 0;
  char* from = static_cast<char*>(mapFile(path, size));
  char* to = nullptr;
  try {
    to = obtain(size);
    if (!to) {
      trim();
      to = obtain(size);
    }
    if (!to)
      throw RangeError("[map] expected memory for " + std::to_string(size) + " bytes, " +
                       shortage());
    // The stream is done with the file's pages when write() returns.
    write(to, from, size);
  } catch (...) {
    if (to) release(to, size);
    unmapFile(from, size);
    throw;
  }
  unmapFile(from, size);
  bytes = size;
  return to;
}

void DeviceMemory::writeFile(char* to, const std::string& path, uint64_t at, uint64_t bytes) {
  size_t size = 0;
  char* from = static_cast<char*>(mapFile(path, size));
  try {
    if (at > size || bytes > size - at) {
      fail("writeFile", std::to_string(bytes) + " bytes at " + std::to_string(at) + " in " + path,
           "a file of " + std::to_string(size));
    }
    // The stream is done with the file's pages when write() returns.
    write(to, from + at, bytes);
  } catch (...) {
    unmapFile(from, size);
    throw;
  }
  unmapFile(from, size);
}

char* DeviceMemory::take(uint64_t bytes, uint64_t& capacity) {
  if (repeated_) {
    if (next_ >= repeated_->size() || (*repeated_)[next_].bytes != bytes) {
      fail("replay", "the working memory of the recording", std::to_string(bytes) + " bytes");
    }
    const Scratch& block = (*repeated_)[next_++];
    capacity = block.capacity;
    return block.data;
  }
  char* data = Memory::take(bytes, capacity);
  if (noted_) noted_->push_back({data, bytes, capacity});
  return data;
}

void DeviceMemory::give(const Buffer& buffer) {
  if (!repeated_) Memory::give(buffer);
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
