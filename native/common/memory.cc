#include "memory.h"

#include <algorithm>
#include <cstdlib>

#include "error.h"
#include "mapped_file.h"

namespace lowrank {

namespace {

constexpr uint64_t kAlign = 64;
constexpr uint64_t kLargest = uint64_t{1} << 39;  // half a TiB in one buffer: more is a mistake
constexpr uint64_t kKeep = uint64_t{32} << 20;    // idle bytes of small buffers, at most
constexpr uint64_t kLarge = uint64_t{64} << 10;   // above it buffers are the arena's
constexpr uint64_t kSlack = uint64_t{32} << 20;   // idle bytes that the arena may always have
constexpr uint64_t kLargePage = uint64_t{2} << 20;
constexpr int kSlotBits = 24;

// Under AddressSanitizer nothing is rounded up or kept, so that it sees every byte past an end and
// every use after free().
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kExact = true;
#else
constexpr bool kExact = false;
#endif

// Capacities come in eight steps an octave, so at most an eighth is wasted and blocks are reused.
uint64_t roundUp(uint64_t bytes) {
  uint64_t n = std::max<uint64_t>(bytes, kAlign);
  uint64_t step = kAlign;
  while (step * 16 < n) step *= 2;
  return (n + step - 1) / step * step;
}

// By bytes asked for or by capacity: rounded up, small ones reach kLarge at most.
bool inArena(uint64_t bytes) { return !kExact && bytes > kLarge; }

}  // namespace

Memory::~Memory() { releaseAll(); }

char* Memory::obtain(uint64_t capacity) {
  void* data = nullptr;
  uint64_t align = capacity >= 2 * kLargePage ? kLargePage : kAlign;
  if (posix_memalign(&data, align, std::max<uint64_t>(capacity, 1)) != 0) return nullptr;
  if (capacity >= 2 * kLargePage) adviseLargePages(data, capacity);
  return static_cast<char*>(data);
}

void Memory::discard(char* data, uint64_t bytes) { discardPages(data, bytes); }

uint64_t Memory::segmentBytes() const { return uint64_t{256} << 20; }

void Memory::release(char* data, uint64_t) { std::free(data); }

char* Memory::obtainFile(const std::string& path, uint64_t& bytes) {
  size_t size = 0;
  char* data = static_cast<char*>(mapFile(path, size));
  bytes = size;
  return data;
}

void Memory::releaseFile(char* data, uint64_t bytes) { unmapFile(data, bytes); }

std::string Memory::shortage() const { return "received none from the system"; }

void Memory::releaseAll() {
  for (Buffer& b : slots_) {
    if (!b.live) continue;
    b.live = false;
    if (b.mapped) {
      releaseFile(b.data, b.bytes);
    } else if (!inArena(b.capacity)) {
      release(b.data, b.capacity);
    }
  }
  trim();
  auto back = [&](char* data, uint64_t bytes) { release(data, bytes); };
  main_.arena.dropAll(back);
  for (Pool& pool : others_) {
    releaseIdle(pool);
    pool.arena.dropAll(back);
  }
  others_.clear();
}

void Memory::book(Purpose purpose, uint64_t bytes) {
  int p = static_cast<int>(purpose);
  books_.live[p] += bytes;
  books_.peak[p] = std::max(books_.peak[p], books_.live[p]);
  books_.total += bytes;
  books_.totalPeak = std::max(books_.totalPeak, books_.total);
}

void Memory::unbook(Purpose purpose, uint64_t bytes) {
  books_.live[static_cast<int>(purpose)] -= bytes;
  books_.total -= bytes;
}

char* Memory::take(uint64_t bytes, uint64_t& capacity) {
  if (bytes <= kLargest && inArena(bytes)) {
    capacity = Arena::sizeFor(bytes);
    if (char* data = takeLarge(capacity)) return data;
  } else if (bytes <= kLargest) {
    capacity = kExact ? bytes : roundUp(bytes);
    auto idle = pool_->idle.find(capacity);
    if (idle != pool_->idle.end() && !idle->second.empty()) {
      char* data = idle->second.back();
      idle->second.pop_back();
      pool_->small -= capacity;
      countIdle();
      return data;
    }
    for (int attempt = 0;; attempt++) {
      if (char* data = obtain(capacity)) return data;
      if (!makeRoom(attempt)) break;
    }
  }
  throw RangeError("[alloc] expected memory for " + std::to_string(bytes) + " bytes, " +
                   shortage());
}

// Before each further attempt at memory; false after the last.
bool Memory::makeRoom(int attempt) {
  if (attempt == 0) {
    trim();
    return true;
  }
  return attempt == 1 && reclaim();
}

// A block of the arena, null where there is no memory for one. Memory in use and idle together
// stays within a sixteenth of the most that was ever in use.
char* Memory::takeLarge(uint64_t size) {
  Arena& arena = pool_->arena;
  char* data = arena.take(size);
  for (int attempt = 0; !data; attempt++) {
    uint64_t least = (size + kLargePage - 1) / kLargePage * kLargePage;
    for (uint64_t bytes : {std::max(segmentBytes(), least), least}) {
      char* segment = obtain(bytes);
      if (!segment) continue;
      arena.add(segment, bytes);
      data = arena.take(size);
      break;
    }
    if (!data && !makeRoom(attempt)) break;
  }
  uint64_t most = arena.mostUsed() + std::max(kSlack, arena.mostUsed() / 16);
  if (pool_ == &main_ && arena.used() + arena.idle() > most) {
    arena.discard(most - arena.used(), [&](char* from, uint64_t bytes) { discard(from, bytes); });
  }
  countIdle();
  return data;
}

void Memory::give(const Buffer& b) {
  Pool& pool = *b.pool;
  bool own = &pool != &main_;
  if (inArena(b.capacity)) {
    pool.arena.give(b.data);
  } else if (!own && (kExact || pool.small + b.capacity > kKeep)) {
    release(b.data, b.capacity);
  } else {
    pool.idle[b.capacity].push_back(b.data);
    pool.small += b.capacity;
  }
  countIdle();
}

Memory::Pool* Memory::openPool() {
  trim();
  others_.emplace_back();
  return pool_ = &others_.back();
}

void Memory::dropPool(Pool* pool) {
  pool->dropped = true;
  if (pool_ == pool) closePool();
  if (pool->live > 0) return;
  releaseIdle(*pool);
  pool->arena.dropAll([&](char* data, uint64_t bytes) { release(data, bytes); });
  others_.remove_if([&](const Pool& p) { return &p == pool; });
  countIdle();
}

// Small blocks of a pool, back to where they came from.
void Memory::releaseIdle(Pool& pool) {
  for (auto& idle : pool.idle) {
    for (char* data : idle.second) release(data, idle.first);
  }
  pool.idle.clear();
  pool.small = 0;
}

void Memory::countIdle() {
  books_.pooled = main_.small + main_.arena.idle();
  for (const Pool& pool : others_) books_.pooled += pool.small + pool.arena.idle();
}

uint64_t Memory::adopt(const Buffer& buffer) {
  uint32_t slot;
  if (freeSlots_.empty()) {
    if (slots_.size() >= (uint64_t{1} << kSlotBits) - 1) {
      throw RangeError("[alloc] expected fewer than 2^24 live buffers, received one more");
    }
    slot = static_cast<uint32_t>(slots_.size());
    slots_.emplace_back();
    freeSlots_.reserve(slots_.capacity());  // so that free() never needs memory
  } else {
    slot = freeSlots_.back();
    freeSlots_.pop_back();
  }
  uint32_t generation = slots_[slot].generation;
  slots_[slot] = buffer;
  slots_[slot].generation = generation;
  slots_[slot].live = true;
  book(buffer.purpose, buffer.bytes);
  books_.handles++;
  return (static_cast<uint64_t>(generation) << kSlotBits) + slot + 1;
}

uint64_t Memory::alloc(uint64_t bytes, Purpose purpose) {
  Buffer b;
  b.data = take(bytes, b.capacity);
  b.bytes = bytes;
  b.purpose = purpose;
  b.pool = pool_;
  try {
    uint64_t handle = adopt(b);
    b.pool->live++;
    return handle;
  } catch (...) {
    give(b);
    throw;
  }
}

uint64_t Memory::allocOutside(uint64_t bytes, Purpose purpose) {
  Pool* open = pool_;
  pool_ = &main_;
  try {
    uint64_t handle = alloc(bytes, purpose);
    pool_ = open;
    return handle;
  } catch (...) {
    pool_ = open;
    throw;
  }
}

uint64_t Memory::map(const std::string& path, uint64_t& bytes) {
  Buffer b;
  b.data = obtainFile(path, bytes);
  b.bytes = bytes;
  b.purpose = Purpose::frozen;
  b.mapped = true;
  try {
    uint64_t handle = adopt(b);
    books_.mapped += bytes;
    return handle;
  } catch (...) {
    releaseFile(b.data, bytes);
    throw;
  }
}

const Memory::Buffer* Memory::lookup(uint64_t handle) const {
  uint64_t slot = (handle & ((uint64_t{1} << kSlotBits) - 1)) - 1;
  if (handle == 0 || slot >= slots_.size()) return nullptr;
  const Buffer& b = slots_[slot];
  return b.live && b.generation == handle >> kSlotBits ? &b : nullptr;
}

const Memory::Buffer& Memory::at(uint64_t handle, const char* where) const {
  if (const Buffer* b = lookup(handle)) return *b;
  fail(where, "a live handle", std::to_string(handle) + ", which was freed or never given");
}

Memory::Buffer& Memory::find(uint64_t handle, const char* where) {
  return const_cast<Buffer&>(at(handle, where));
}

void Memory::free(uint64_t handle) {
  Buffer& b = find(handle, "free");
  if (b.mapped) {
    releaseFile(b.data, b.bytes);
    books_.mapped -= b.bytes;
  } else {
    give(b);
  }
  Pool* pool = b.pool;
  unbook(b.purpose, b.bytes);
  books_.handles--;
  b.live = false;
  b.data = nullptr;
  b.generation = (b.generation + 1) & 0xfffffff;  // handles stay below 2^52
  freeSlots_.push_back(static_cast<uint32_t>(&b - slots_.data()));
  if (pool && --pool->live == 0 && pool->dropped) dropPool(pool);
}

void Memory::retag(uint64_t handle, Purpose purpose) {
  Buffer& b = find(handle, "retag");
  unbook(b.purpose, b.bytes);
  b.purpose = purpose;
  book(purpose, b.bytes);
}

void Memory::resetPeak() {
  for (int p = 0; p < kPurposes; p++) books_.peak[p] = books_.live[p];
  books_.totalPeak = books_.total;
}

void Memory::trim() {
  releaseIdle(main_);
  main_.arena.drop([&](char* data, uint64_t bytes) { release(data, bytes); });
  main_.arena.discard(0, [&](char* from, uint64_t bytes) { discard(from, bytes); });
  countIdle();
}

}  // namespace lowrank
