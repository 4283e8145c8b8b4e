// What a kernel of the CPU gets, and the table of kernels.
#pragma once

#include <type_traits>
#include <vector>

#include "call.h"
#include "memory.h"
#include "pool.h"

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

struct Args : Call {
  Context& context;
  Args(const Call& call, Context& context) : Call(call), context(context) {}
};

struct Kernel {
  const char* name;
  void (*run)(const Args& args);
};

// Filled once by each family's function; a kernel's number is its place.
using Registry = std::vector<Kernel>;

}  // namespace lowrank
