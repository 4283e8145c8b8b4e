#include "reads.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "context.h"

namespace lowrank {

namespace {

constexpr size_t kLeast = 4096;  // bytes of a slot
constexpr size_t kIdle = 16;     // slots that are kept for the next copies

}  // namespace

bool Reads::obtain(Slot& slot, size_t bytes) {
  auto fits = [&](const Slot& s) { return s.capacity >= bytes; };
  auto found = std::find_if(idle_.begin(), idle_.end(), fits);
  if (found != idle_.end()) {
    slot = *found;
    idle_.erase(found);
    return true;
  }
  void* data = nullptr;
  slot.capacity = std::max(bytes, kLeast);
  if (cudaMallocHost(&data, slot.capacity) == cudaSuccess) {
    slot.data = static_cast<char*>(data);
    if (cudaEventCreateWithFlags(&slot.there, cudaEventDisableTiming) == cudaSuccess) return true;
    slot.there = nullptr;
  }
  cudaGetLastError();  // taken note of: later calls do not report it again
  release(slot);
  return false;
}

void Reads::release(Slot& slot) {
  if (slot.there) cudaEventDestroy(slot.there);
  if (slot.data) cudaFreeHost(slot.data);
  slot = {};
}

uint64_t Reads::begin(const char* from, size_t bytes, cudaStream_t stream) {
  Read read;
  read.count = bytes;
  if (obtain(read.slot, bytes)) {
    cudaError_t status =
        cudaMemcpyAsync(read.slot.data, from, bytes, cudaMemcpyDeviceToHost, stream);
    if (status == cudaSuccess) status = cudaEventRecord(read.slot.there, stream);
    if (status != cudaSuccess) release(read.slot);
    cudaCheck("readLater", status);
  } else {
    read.bytes.resize(bytes);
    cudaCheck("readLater",
              cudaMemcpyAsync(read.bytes.data(), from, bytes, cudaMemcpyDeviceToHost, stream));
    cudaCheck("readLater", cudaStreamSynchronize(stream));
  }
  reads_[++last_] = std::move(read);
  return last_;
}

void Reads::take(uint64_t read, void* to, size_t bytes) {
  auto found = reads_.find(read);
  if (found == reads_.end() || found->second.count != bytes) {
    fail("takeRead", "a copy under way, of its size",
         "number " + std::to_string(read) + " of " + std::to_string(bytes) + " bytes");
  }
  const Slot& slot = found->second.slot;
  if (slot.there) cudaCheck("takeRead", cudaEventSynchronize(slot.there));
  std::memcpy(to, slot.there ? slot.data : found->second.bytes.data(), bytes);
  drop(read);
}

void Reads::drop(uint64_t read) {
  auto found = reads_.find(read);
  if (found == reads_.end()) return;
  // What still copies into it is ahead of the next copy in the stream.
  if (found->second.slot.there) {
    if (idle_.size() < kIdle) {
      idle_.push_back(found->second.slot);
    } else {
      cudaEventSynchronize(found->second.slot.there);
      release(found->second.slot);
    }
  }
  reads_.erase(found);
}

void Reads::close() {
  for (auto& [number, read] : reads_) release(read.slot);
  for (Slot& slot : idle_) release(slot);
  reads_.clear();
  idle_.clear();
}

}  // namespace lowrank
