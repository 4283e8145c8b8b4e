// Copies to the host that nobody waits for yet: each into pinned memory of its own, with an event
// that says when it is there.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <vector>

namespace lowrank {

class Reads {
 public:
  Reads() = default;
  Reads(const Reads&) = delete;
  Reads& operator=(const Reads&) = delete;
  ~Reads() { close(); }

  // The copy's number. Where no memory can be pinned it waits here.
  uint64_t begin(const char* from, size_t bytes, cudaStream_t stream);
  // Waits for it, and gives its bytes and its number back.
  void take(uint64_t read, void* to, size_t bytes);
  // A number that is none does nothing.
  void drop(uint64_t read);
  void close();

 private:
  struct Slot {
    char* data = nullptr;
    size_t capacity = 0;
    cudaEvent_t there = nullptr;
  };
  struct Read {
    Slot slot;                // or
    std::vector<char> bytes;  // what was waited for
    size_t count = 0;
  };

  bool obtain(Slot& slot, size_t bytes);
  static void release(Slot& slot);

  std::map<uint64_t, Read> reads_;
  std::vector<Slot> idle_;
  uint64_t last_ = 0;
};

}  // namespace lowrank
