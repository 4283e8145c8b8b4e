// Device memory behind the handles and books of common/memory.h. Work goes through one stream, so
// a block may be used again at once after it is given back.
#pragma once

#include <cuda_runtime_api.h>

#include "../common/memory.h"

namespace lowrank {

class DeviceMemory : public Memory {
 public:
  ~DeviceMemory() override { releaseAll(); }
  // The stream that copies of files go through.
  void bind(cudaStream_t stream) { stream_ = stream; }
  // Everything back to the device.
  void close() { releaseAll(); }

 protected:
  char* obtain(uint64_t capacity) override;
  void release(char* data, uint64_t capacity) override;
  void discard(char*, uint64_t) override {}  // a device has no way to
  // A file in device memory: mapped, and copied chunk by chunk through pinned memory.
  char* obtainFile(const std::string& path, uint64_t& bytes) override;
  void releaseFile(char* data, uint64_t bytes) override { release(data, bytes); }
  std::string shortage() const override;

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace lowrank
