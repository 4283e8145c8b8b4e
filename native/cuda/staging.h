// Copies from the host to the device through pinned memory, so that they need not wait for it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace lowrank {

class Staging {
 public:
  Staging() = default;
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging() { close(); }

  // The host's memory may be reused when this returns; the stream copies in the order of calls.
  // Where no memory can be pinned it waits for the copy.
  void write(char* to, const void* from, size_t bytes, cudaStream_t stream);
  void close();

 private:
  bool open();
  char* place(size_t bytes, cudaStream_t stream);

  // Two halves; an event for each says that what was copied from it has left.
  char* half_[2] = {};
  cudaEvent_t left_[2] = {};
  int at_ = 0;
  size_t used_ = 0;  // bytes of the half in use
  bool ready_ = false;
};

}  // namespace lowrank
