// What a kernel gets, and the table of kernels of a backend.
#pragma once

#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

#include "error.h"
#include "memory.h"
#include "pool.h"
#include "view.h"

namespace lowrank {

struct IsaTable;

// The state of one environment that kernels use.
struct Context {
  Memory memory;
  const IsaTable* isa = nullptr;
  int threads = 1;
  bool brain = false;  // whether products with a bf16 factor round the other one to bf16, too

  // f(chunk, worker) for every chunk; worker < threads names the scratch a call may use.
  template <class F>
  void chunks(size_t n, F&& f) {
    Pool::shared().run(
        n, threads,
        [](void* p, size_t chunk, int worker) {
          (*static_cast<std::remove_reference_t<F>*>(p))(static_cast<int64_t>(chunk), worker);
        },
        &f);
  }
  // f(begin, end, worker) over [0, n) in ranges of `grain` items.
  template <class F>
  void ranges(int64_t n, int64_t grain, F&& f) {
    if (n <= 0) return;
    int64_t count = (n + grain - 1) / grain;
    chunks(static_cast<size_t>(count), [&](int64_t chunk, int worker) {
      int64_t from = chunk * grain;
      f(from, from + grain < n ? from + grain : n, worker);
    });
  }
  // ranges() over rows of `width` elements each, sized so that a range is worth a thread.
  template <class F>
  void rows(int64_t n, int64_t width, F&& f) {
    int64_t grain = kGrain / (width > 0 ? width : 1);
    ranges(n, grain > 0 ? grain : 1, f);
  }
  static constexpr int64_t kGrain = 16384;
};

// Throws unless `ok`; the texts are made only then.
#define EXPECT(args, ok, expected, received)            \
  do {                                                  \
    if (!(ok)) fail((args).kernel, expected, received); \
  } while (false)

struct Args {
  const char* kernel;
  Context& context;
  const View* tensors;
  size_t count;
  const double* attrs;
  size_t attrCount;

  // Exactly these numbers of tensors and attributes.
  void counts(size_t wantTensors, size_t wantAttrs) const;
  void atLeast(size_t wantTensors, size_t wantAttrs) const;
  const View& operator[](size_t i) const { return tensors[i]; }
  // A tensor of the given dtype that may be written.
  const View& out(size_t i, DType dtype = DType::f32) const;
  const View& writable(size_t i) const;
  const View& typed(size_t i, DType dtype) const;
  void sameShape(size_t i, size_t j) const;
  void shaped(size_t i, std::initializer_list<int64_t> dims) const;
  // The attribute as an integer in [lo, hi].
  int64_t integer(size_t i, int64_t lo, int64_t hi) const;
  // An axis in [0, rank).
  int axis(size_t i, int rank) const { return static_cast<int>(integer(i, 0, rank - 1)); }
};

struct Kernel {
  const char* name;
  void (*run)(const Args& args);
};

// Filled once by each family's function; a kernel's number is its place.
using Registry = std::vector<Kernel>;

}  // namespace lowrank
