// Pooled, 64-byte-aligned memory behind integer handles, with books by purpose. Buffers above
// 64 KiB are cut from an arena; smaller ones are kept by size class.
// One per environment, used from its JavaScript thread only.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "arena.h"

namespace lowrank {

enum class Purpose : int { frozen, trainable, gradient, optimizer, activation, workspace };
constexpr int kPurposes = 6;

class Memory {
 public:
  struct Books {
    uint64_t live[kPurposes] = {};
    uint64_t peak[kPurposes] = {};
    uint64_t total = 0, totalPeak = 0;
    uint64_t pooled = 0;   // bytes kept for reuse
    uint64_t handles = 0;  // live handles
    uint64_t mapped = 0;   // bytes of mapped files, also counted as live frozen
  };
  struct Buffer {
    char* data = nullptr;
    uint64_t bytes = 0;     // as asked for: what the books count
    uint64_t capacity = 0;  // as taken from the pool
    Purpose purpose = Purpose::activation;
    bool mapped = false;
    bool live = false;
    uint32_t generation = 0;
  };

  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  virtual ~Memory();

  // The memory is not cleared. Throws RangeError where there is none.
  uint64_t alloc(uint64_t bytes, Purpose purpose);
  // A whole file as one read-only frozen buffer.
  uint64_t map(const std::string& path, uint64_t& bytes);
  void free(uint64_t handle);
  void retag(uint64_t handle, Purpose purpose);
  // The buffer behind a live handle; a stale or unknown one is an error under the name `where`.
  const Buffer& at(uint64_t handle, const char* where) const;

  const Books& books() const { return books_; }
  void resetPeak();
  void trim();

 protected:
  // Where memory comes from; what a backend on a device replaces. A class that does calls
  // releaseAll() in its destructor. obtain answers null where there is none.
  virtual char* obtain(uint64_t capacity);
  virtual void release(char* data, uint64_t capacity);
  // Lets the system have the memory of an idle range; its addresses stay, with any contents.
  virtual void discard(char* data, uint64_t bytes);
  // The least that the arena obtains at once.
  virtual uint64_t segmentBytes() const;
  // A whole file, readable by kernels.
  virtual char* obtainFile(const std::string& path, uint64_t& bytes);
  virtual void releaseFile(char* data, uint64_t bytes);
  // What to do about memory that could not be had; ends the error's text.
  virtual std::string shortage() const;
  // Everything, live or idle, back to where it came from.
  void releaseAll();

 private:
  Buffer& find(uint64_t handle, const char* where);
  uint64_t adopt(const Buffer& buffer);
  void book(Purpose purpose, uint64_t bytes);
  void unbook(Purpose purpose, uint64_t bytes);
  char* take(uint64_t bytes, uint64_t& capacity);
  void give(char* data, uint64_t capacity);
  char* takeLarge(uint64_t size);
  void countIdle() { books_.pooled = small_ + arena_.idle(); }

  std::vector<Buffer> slots_;
  std::vector<uint32_t> freeSlots_;
  std::map<uint64_t, std::vector<char*>> idle_;  // small ones, by capacity
  uint64_t small_ = 0;                           // their bytes
  Arena arena_;
  Books books_;
};

// Scratch memory of one kernel call.
class Workspace {
 public:
  Workspace() = default;
  Workspace(Memory& memory, uint64_t bytes)
      : memory_(&memory), handle_(memory.alloc(bytes, Purpose::workspace)) {}
  Workspace(Workspace&& o) noexcept : memory_(o.memory_), handle_(o.handle_) {
    o.memory_ = nullptr;
  }
  Workspace& operator=(Workspace&&) = delete;
  ~Workspace() {
    if (memory_) memory_->free(handle_);
  }
  template <class T = float>
  T* as() const {
    return reinterpret_cast<T*>(memory_->at(handle_, "workspace").data);
  }

 private:
  Memory* memory_ = nullptr;
  uint64_t handle_ = 0;
};

}  // namespace lowrank
