// Device memory behind the handles and books of common/memory.h. Work goes through one stream, so
// a block may be used again at once after it is given back.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <string>
#include <vector>

#include "../common/memory.h"
#include "staging.h"

namespace lowrank {

class DeviceMemory : public Memory {
 public:
  // A block that a kernel's launcher worked with.
  struct Scratch {
    char* data;
    uint64_t bytes, capacity;
  };

  ~DeviceMemory() override { close(); }
  // The stream that copies go through.
  void bind(cudaStream_t stream) { stream_ = stream; }
  // What to free where memory runs out; answers whether there was something.
  void whenShort(std::function<bool()> reclaim) { reclaim_ = std::move(reclaim); }
  // Everything back to the device.
  void close() {
    staging_.close();
    releaseAll();
  }
  // The host's memory may be reused when this returns.
  void write(char* to, const void* from, size_t bytes) { staging_.write(to, from, bytes, stream_); }
  // Bytes of a file from `at` on, through pinned memory from where it is mapped.
  void writeFile(char* to, const std::string& path, uint64_t at, uint64_t bytes);

  // What launchers take is noted at the end of `blocks`, or taken from there in order; null:
  // neither.
  void note(std::vector<Scratch>* blocks) { noted_ = blocks; }
  void repeat(const std::vector<Scratch>* blocks) {
    repeated_ = blocks;
    next_ = 0;
  }

 protected:
  char* obtain(uint64_t capacity) override;
  void release(char* data, uint64_t capacity) override;
  void discard(char*, uint64_t) override {}  // a device has no way to
  uint64_t segmentBytes() const override;
  // A file in device memory: mapped, and copied chunk by chunk through pinned memory.
  char* obtainFile(const std::string& path, uint64_t& bytes) override;
  void releaseFile(char* data, uint64_t bytes) override { release(data, bytes); }
  std::string shortage() const override;
  bool reclaim() override { return reclaim_ && reclaim_(); }
  char* take(uint64_t bytes, uint64_t& capacity) override;
  void give(const Buffer& buffer) override;

 private:
  cudaStream_t stream_ = nullptr;
  uint64_t obtained_ = 0;  // bytes from the device
  Staging staging_;
  std::function<bool()> reclaim_;
  std::vector<Scratch>* noted_ = nullptr;
  const std::vector<Scratch>* repeated_ = nullptr;
  size_t next_ = 0;
};

}  // namespace lowrank
