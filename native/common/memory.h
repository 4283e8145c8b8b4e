// Pooled, 64-byte-aligned memory behind integer handles, with books by purpose. Buffers above
// 64 KiB are cut from an arena; smaller ones are kept by size class.
// One per environment, used from its JavaScript thread only.
#pragma once

#include <cstdint>
#include <list>
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
  // Where idle memory waits for its next use.
  struct Pool {
    std::map<uint64_t, std::vector<char*>> idle;  // small blocks, by capacity
    uint64_t small = 0;                           // their bytes
    Arena arena;
    uint64_t live = 0;     // buffers that are in use
    bool dropped = false;  // goes with the last of them
  };
  struct Buffer {
    char* data = nullptr;
    uint64_t bytes = 0;     // as asked for: what the books count
    uint64_t capacity = 0;  // as taken from the pool
    Purpose purpose = Purpose::activation;
    Pool* pool = nullptr;  // none of a mapped file
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
  bool alive(uint64_t handle) const { return lookup(handle) != nullptr; }

  // From here to closePool() memory comes from a pool of its own, which serves nobody else: what
  // was freed in it keeps its address, and may be written behind the books, until dropPool().
  Pool* openPool();
  void closePool() { pool_ = &main_; }
  // A buffer that lies in no such pool, although one is open.
  uint64_t allocOutside(uint64_t bytes, Purpose purpose);
  // Buffers of it that are in use stay; their memory goes when they are freed.
  void dropPool(Pool* pool);

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
  // Frees memory that can be done without, once there is no more to have; false where there is
  // none.
  virtual bool reclaim() { return false; }
  // Everything, live or idle, back to where it came from.
  void releaseAll();
  // A block of at least `bytes` for a buffer, or RangeError; and back.
  virtual char* take(uint64_t bytes, uint64_t& capacity);
  virtual void give(const Buffer& buffer);

 private:
  const Buffer* lookup(uint64_t handle) const;
  Buffer& find(uint64_t handle, const char* where);
  uint64_t adopt(const Buffer& buffer);
  void book(Purpose purpose, uint64_t bytes);
  void unbook(Purpose purpose, uint64_t bytes);
  char* takeLarge(uint64_t size);
  bool makeRoom(int attempt);
  void releaseIdle(Pool& pool);
  void countIdle();

  std::vector<Buffer> slots_;
  std::vector<uint32_t> freeSlots_;
  Pool main_;
  std::list<Pool> others_;
  Pool* pool_ = &main_;
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
