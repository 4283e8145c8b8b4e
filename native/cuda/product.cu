// The choice of a way to multiply, by the shape, or, where products are batch-invariant, by k, n
// and the dtypes alone. A product's factors get one type first: in `compute: bf16` an f32 factor
// that meets a bf16 one is rounded, otherwise the narrower one is widened.
#include "activations.cuh"
#include "blas.h"
#include "map.cuh"

namespace lowrank {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kThin = 16;  // rows or columns for which reading the other factor is all there is

// Four elements a thread, from memory aligned for that; `to` always is.
template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    convertKernel(const From* from, To* to, int64_t n, bool vector) {
  int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 4;
  if (i >= n) return;
  struct alignas(4 * sizeof(From)) In {
    From v[4];
  } in;
  struct alignas(4 * sizeof(To)) Out {
    To v[4];
  } out;
  bool whole = i + 3 < n;
  if (vector && whole) {
    in = *reinterpret_cast<const In*>(from + i);
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++) in.v[j] = i + j < n ? from[i + j] : From{};
  }
#pragma unroll
  for (int j = 0; j < 4; j++) out.v[j] = narrow<To>(widen(in.v[j]));
  if (whole) {
    *reinterpret_cast<Out*>(to + i) = out;
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (i + j < n) to[i + j] = out.v[j];
    }
  }
}

template <class To>
void convert(const CudaArgs& args, const Factor& f, To* to) {
  byFloat(f.dtype, [&](auto type) {
    using From = decltype(type);
    bool vector = reinterpret_cast<uintptr_t>(f.data) % (4 * sizeof(From)) == 0;
    launch(args, convertKernel<From, To>, dim3(blocksFor(f.count, 4 * kThreads)), dim3(kThreads), 0,
           static_cast<const From*>(f.data), to, f.count, vector);
  });
}

// A factor in another type, in scratch memory.
class Converted {
 public:
  Converted(const CudaArgs& args, Factor& f, DType type)
      : held_(f.dtype == type ? Workspace()
                              : Workspace(args.device.memory,
                                          static_cast<uint64_t>(f.count) * dtypeSize(type))) {
    if (f.dtype == type) return;
    if (type == DType::f32) {
      convert(args, f, held_.as<float>());
    } else {
      convert(args, f, held_.as<Bf16>());
    }
    f.data = held_.as<void>();
    f.dtype = type;
  }

 private:
  Workspace held_;
};

bool thin(const Product& p) {
  return p.batches.count == 1 && (p.m <= 8 || (p.a.dtype == DType::f32 && p.b.dtype == DType::f32 &&
                                               (p.m <= kThin || p.n <= kThin)));
}

// Whether a factor in f32 is worth the memory: the weights of a large head are not.
bool widens(const Product& p) {
  constexpr int64_t kMost = int64_t{1} << 26;
  return p.m > 64 && (p.a.dtype == DType::f32 || p.a.count <= kMost) &&
         (p.b.dtype == DType::f32 || p.b.count <= kMost);
}

// cuBLASLt adds a bias of y's type, and rounds to bf16 the products of bf16 alone: a bias is
// widened to meet a y of f32, and other products are rounded in a pass of their own. Says in
// `after` whether what is made of y is done, too.
bool byBlas(const CudaArgs& args, const Product& task, bool& after) {
  if (!blasThere(args.device)) return false;
  Product p = task;
  bool apart = p.yType == DType::bf16 && p.a.dtype != DType::bf16;
  int64_t count = p.batches.count * p.m * p.n;
  Workspace sum = apart
                      ? Workspace(args.device.memory, static_cast<uint64_t>(count) * sizeof(float))
                      : Workspace();
  if (apart) {
    p.after = {};
    p.y = sum.as<void>();
    p.yType = DType::f32;
    if (p.accumulate) convert(args, {task.y, task.yType, p.n, 1, count}, sum.as<float>());
  }
  Factor bias = {p.bias, p.bias ? p.biasType : DType::f32, 1, 1, p.n};
  Converted widened(args, bias, p.yType == DType::f32 ? DType::f32 : bias.dtype);
  p.bias = bias.data;
  p.biasType = bias.dtype;
  if (!blasProduct(args, p, after)) return false;
  if (apart) convert(args, {p.y, p.yType, p.n, 1, count}, static_cast<Bf16*>(task.y));
  return true;
}

struct Activate {
  Activation f;
  __device__ __forceinline__ void operator()(const float (&in)[1], float (&out)[1]) const {
    out[0] = activationOf(f, in[0]);
  }
};
struct Gate {
  __device__ __forceinline__ void operator()(const float (&in)[2], float (&out)[1]) const {
    out[0] = swigluOf(in[0], in[1]);
  }
};

// What is made of y, in a pass of its own.
void finish(const CudaArgs& args, const Product& p) {
  if (!p.after.to) return;
  AnyFloats y = {p.y, p.yType}, gate = {p.after.gate, p.yType};
  AnyOut to;
  to.data = p.after.to;
  to.type = p.yType;
  if (p.after.gate) {
    launchMap(args, Operands<2, 1, AnyOut>{{gate, y}, {to}}, p.m * p.n, Gate());
  } else {
    Activate f = {p.after.activation};
    launchMap(args, Operands<1, 1, AnyOut>{{y}, {to}}, p.m * p.n, f);
  }
}

void ofOneType(const CudaArgs& args, const Product& p) {
  if (args.device.batchInvariant) {
    // Rows that are read along k, as those of a batch are, are aligned for the tensor cores or not
    // by k alone.
    if (p.a.col != 1 || !mmaProduct(args, p)) tiledProduct(args, p);
    return;
  }
  if (thin(p)) return tiledProduct(args, p);
  bool after = false;
  if (byBlas(args, p, after)) {
    if (!after) finish(args, p);
  } else if (!mmaProduct(args, p)) {
    tiledProduct(args, p);
  }
}

}  // namespace

void runProduct(const CudaArgs& args, const Product& task) {
  Product p = task;
  auto is = [](const Factor& f, DType a, DType b) { return f.dtype == a || f.dtype == b; };
  bool mixed = p.a.dtype != p.b.dtype;
  bool brain = args.device.brain && mixed && is(p.a, DType::f32, DType::bf16) &&
               is(p.b, DType::f32, DType::bf16);
  bool wide = mixed && !thin(p) && widens(p) && !args.device.batchInvariant;
  if (brain || (wide && blasThere(args.device))) {
    DType type = brain ? DType::bf16 : DType::f32;
    Converted a(args, p.a, type), b(args, p.b, type);
    return ofOneType(args, p);
  }
  if (mixed) return tiledProduct(args, p);
  ofOneType(args, p);
}

}  // namespace lowrank
