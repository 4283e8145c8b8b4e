// Large blocks cut from segments and joined again when they are free, so that what one size gave
// back serves another. Its owner gets the segments and gives them back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <set>
#include <utility>
#include <vector>

namespace lowrank {

class Arena {
 public:
  // Bytes that a request takes: a multiple of 64, and not one of a page, so that the elements of
  // equal arrays do not fall into the same lines of the nearest cache.
  static uint64_t sizeFor(uint64_t bytes) { return (bytes + 255) / 64 * 64; }

  // A block of `size` bytes (of sizeFor), or null where a segment must be added first.
  char* take(uint64_t size);
  void give(char* block);
  // Memory of the owner's from which blocks are cut.
  void add(char* segment, uint64_t bytes);

  // Bytes of free blocks that were used and not discarded.
  uint64_t idle() const { return idle_; }
  // Bytes of blocks in use, now and at most.
  uint64_t used() const { return used_; }
  uint64_t mostUsed() const { return mostUsed_; }

  // Hands free blocks, the largest first, to f(data, bytes), until no more than `most` bytes are
  // idle: f lets the system have their memory, and the addresses stay.
  template <class F>
  void discard(uint64_t most, F f) {
    for (auto it = free_.rbegin(); it != free_.rend() && idle_ > most; ++it) {
      Block& b = blocks_.find(it->second)->second;
      if (b.idle == 0) continue;
      f(it->second, b.size);
      idle_ -= b.idle;
      b.idle = 0;
    }
  }

  // Hands every segment without a block in use to f(data, bytes), and forgets it.
  template <class F>
  void drop(F f) {
    for (size_t i = segments_.size(); i-- > 0;) {
      if (!unused(segments_[i])) continue;
      forget(segments_[i].base);
      f(segments_[i].base, segments_[i].bytes);
      segments_.erase(segments_.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  // The same with all segments.
  template <class F>
  void dropAll(F f) {
    for (const Segment& s : segments_) f(s.base, s.bytes);
    *this = Arena();
  }

 private:
  struct Segment {
    char* base;
    uint64_t bytes;
    uint64_t cut;  // bytes from its start that have been part of a block
  };
  // Neighbours in the map touch, but for the first block of a segment.
  struct Block {
    uint64_t size;
    uint64_t idle;  // of a free block: bytes that the system counts as ours
    bool free;
    bool first;
  };
  using Place = std::map<char*, Block>::iterator;

  // What is left of a block is not worth one of its own below this.
  static constexpr uint64_t kLeast = uint64_t{16} << 10;

  bool unused(const Segment& s) const;
  void forget(char* segment);
  Segment* roomy(uint64_t size, Place* last);
  char* occupy(Place block, uint64_t size);
  void setFree(Place block, uint64_t idle);
  void unsetFree(Place block);

  std::map<char*, Block> blocks_;
  std::set<std::pair<uint64_t, char*>> free_;  // by size, then by address
  std::vector<Segment> segments_;
  uint64_t idle_ = 0, used_ = 0, mostUsed_ = 0;
};

inline void Arena::setFree(Place block, uint64_t idle) {
  block->second.free = true;
  block->second.idle = idle;
  idle_ += idle;
  free_.emplace(block->second.size, block->first);
}

inline void Arena::unsetFree(Place block) {
  free_.erase({block->second.size, block->first});
  idle_ -= block->second.idle;
  block->second.free = false;
}

inline void Arena::add(char* segment, uint64_t bytes) { segments_.push_back({segment, bytes, 0}); }

// A segment with room for `size` behind its blocks, the last of which counts where it is free.
inline Arena::Segment* Arena::roomy(uint64_t size, Place* last) {
  for (Segment& s : segments_) {
    uint64_t room = s.bytes - s.cut;
    *last = blocks_.end();
    if (s.cut > 0) {
      Place block = std::prev(blocks_.lower_bound(s.base + s.cut));
      if (block->second.free) {
        *last = block;
        room += block->second.size;
      }
    }
    if (room >= size) return &s;
  }
  return nullptr;
}

// Takes the first `size` bytes of a free block; what is left becomes another one.
inline char* Arena::occupy(Place place, uint64_t size) {
  Block& b = place->second;
  unsetFree(place);
  if (b.size - size >= kLeast) {
    Place rest = blocks_.emplace(place->first + size, Block{b.size - size, 0, true, false}).first;
    setFree(rest, b.idle > size ? b.idle - size : 0);
    b.size = size;
  }
  used_ += b.size;
  mostUsed_ = std::max(mostUsed_, used_);
  return place->first;
}

inline char* Arena::take(uint64_t size) {
  auto fit = free_.lower_bound({size, nullptr});
  if (fit != free_.end()) return occupy(blocks_.find(fit->second), size);
  Place last;
  Segment* s = roomy(size, &last);
  if (!s) return nullptr;
  if (last == blocks_.end()) {
    last = blocks_.emplace(s->base + s->cut, Block{size, 0, true, s->cut == 0}).first;
    s->cut += size;
    setFree(last, 0);
  } else {
    uint64_t more = size - last->second.size, idle = last->second.idle;
    unsetFree(last);
    last->second.size += more;
    s->cut += more;
    setFree(last, idle);
  }
  return occupy(last, size);
}

inline void Arena::give(char* data) {
  Place block = blocks_.find(data);
  used_ -= block->second.size;
  uint64_t idle = block->second.size;
  Place next = std::next(block);
  if (next != blocks_.end() && next->second.free && !next->second.first) {
    idle += next->second.idle;
    unsetFree(next);
    block->second.size += next->second.size;
    blocks_.erase(next);
  }
  if (!block->second.first) {
    Place before = std::prev(block);
    if (before->second.free) {
      idle += before->second.idle;
      unsetFree(before);
      before->second.size += block->second.size;
      blocks_.erase(block);
      block = before;
    }
  }
  setFree(block, idle);
}

inline bool Arena::unused(const Segment& s) const {
  auto block = blocks_.find(s.base);
  return block == blocks_.end() || (block->second.free && block->second.size == s.cut);
}

// A segment's one free block.
inline void Arena::forget(char* segment) {
  Place block = blocks_.find(segment);
  if (block == blocks_.end()) return;
  unsetFree(block);
  blocks_.erase(block);
}

}  // namespace lowrank
