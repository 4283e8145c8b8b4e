// What LoRA's branches and their gradients share: segments of a batch, neighbouring rows of one
// adapter, and launches that take many of them.
#pragma once

#include <algorithm>

#include "../common/calls/low_rank.h"
#include "matmul.cuh"

namespace lowrank {

constexpr int kSegments = 32;  // of a launch; its parameters hold them

// A matrix of an adapter: element (k, i) of [r, width] lies at k·rank + i·col.
struct Side {
  const void* data;
  DType type;
  int64_t rankStep, colStep;
  bool vector;  // whether four neighbours may be read at once
};

struct Segment {
  int64_t from, rows, rank;
  float scale;
  Side down, up;
  int64_t slot;  // of its adapter's first part
  int64_t own;   // rows of its adapter that come before
};

template <class T>
struct Launch {
  T task;
  unsigned count;
  Segment segments[kSegments];
};

// z = base + h up with h = scale · x down'. No base: zeros; no z: h alone.
struct Branch {
  const void *x, *base;
  DType xType, baseType;
  bool vectorX;
  AnyOut z;  // of no data where there is none
  float* h;
  int64_t deep, cols, hWidth;
};

void runBranch(const CudaArgs& args, const std::vector<Segment>& segments, const Branch& task);

// f(launch, segments of it, rows of its longest) for as many segments at once as a launch takes.
template <class T, class F>
void byLaunch(const std::vector<Segment>& segments, const T& task, F&& f) {
  Launch<T> l;
  l.task = task;
  for (size_t from = 0; from < segments.size(); from += kSegments) {
    size_t count = std::min<size_t>(kSegments, segments.size() - from);
    int64_t longest = 0;
    for (size_t i = 0; i < count; i++) {
      l.segments[i] = segments[from + i];
      longest = std::max(longest, l.segments[i].rows);
    }
    l.count = static_cast<unsigned>(count);
    if (longest > 0) f(l, static_cast<unsigned>(count), longest);
  }
}

Side sideOfA(const View& a);

// Neighbouring rows of one adapter, by the attributes from `first` on; each has the group in slot.
std::vector<Segment> segmentsOf(const CudaArgs& args, size_t adapters, size_t first, int64_t batch,
                                int64_t each);

void addLowRankRowsGrad(const CudaArgs& args);

}  // namespace lowrank
