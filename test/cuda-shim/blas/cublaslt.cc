// cuBLASLt for tests: the functions that native/cuda/blas.cc calls, over plain loops, strict about
// what it is given. LOWRANK_SHIM_BLAS_LOG names a file that gets a line for each product.
// LOWRANK_SHIM_BLAS_REFUSE: "heuristic" or "matmul" refuses there. Compiled with LACKS_MATMUL it
// has no cublasLtMatmul.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "../cuda_fp16.h"
#include "../stream.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum Status { kSuccess = 0, kInvalid = 7, kFailed = 13, kNotSupported = 15 };
constexpr uint64_t kMagic = 0x10a2b3c4d5e6f708u;
constexpr size_t kWorkspace = 4096;
constexpr uint32_t kBias = 4, kGelu = 32, kAux = 128;  // of an epilogue; 1 is none

struct Object {
  uint64_t magic;
  std::map<int, std::string> set;  // attributes, as bytes
};
struct Desc : Object {
  int compute, scale;
};
struct Layout : Object {
  int type;
  int64_t rows, cols, ld;
};
struct Algo {
  uint64_t data[8];
};
struct Heuristic {
  Algo algo;
  size_t workspace;
  int status;
  float waves;
  int reserved[4];
};

template <class T>
T get(const Object* o, int attribute, T fallback) {
  auto found = o->set.find(attribute);
  if (found == o->set.end()) return fallback;
  T value;
  std::memcpy(&value, found->second.data(), sizeof value);
  return value;
}

int put(Object* o, int attribute, const void* value, size_t bytes, size_t want) {
  if (!o || o->magic != kMagic || !value || bytes != want) return kInvalid;
  o->set[attribute] = std::string(static_cast<const char*>(value), bytes);
  return kSuccess;
}

bool refuses(const char* where) {
  const char* wish = std::getenv("LOWRANK_SHIM_BLAS_REFUSE");
  return wish && std::strcmp(wish, where) == 0;
}

inline float widened(uint16_t bits) {
  uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline float elementOf(const void* data, bool brain, int64_t i) {
  return brain ? widened(static_cast<const uint16_t*>(data)[i])
               : static_cast<const float*>(data)[i];
}

// To nearest even; a NaN stays one.
inline uint16_t roundedToBrain(float value) {
  uint32_t u;
  std::memcpy(&u, &value, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

// Its tanh form, in an arithmetic that is not the kernels'.
[[maybe_unused]] float gelu(float x) {
  double inner = 0.7978845608028654 * (x + 0.044715 * x * x * x);
  return static_cast<float>(0.5 * x * (1 + std::tanh(inner)));
}

struct Matrix {
  const Layout* l;
  const char* data;
  int64_t batch, step;
  bool turned;
  int64_t rows() const { return turned ? l->cols : l->rows; }
  int64_t cols() const { return turned ? l->rows : l->cols; }
  float at(int64_t b, int64_t i, int64_t j) const {
    int64_t place = b * step + (turned ? j + i * l->ld : i + j * l->ld);
    if (l->type == 0) return reinterpret_cast<const float*>(data)[place];
    uint16_t bits = reinterpret_cast<const uint16_t*>(data)[place];
    if (l->type == 2) return __half2float(__ushort_as_half(bits));
    return widened(bits);
  }
};

Matrix matrix(const Layout* l, const void* data, int op) {
  return {l, static_cast<const char*>(data), get<int32_t>(l, 5, 1), get<int64_t>(l, 6, 0), op == 1};
}

// What the library checks of a product, before it runs.
int check(const Desc* desc, const Layout* a, const Layout* b, const Layout* c, const Layout* d) {
  for (const Object* o : {static_cast<const Object*>(desc), static_cast<const Object*>(a),
                          static_cast<const Object*>(b), static_cast<const Object*>(c),
                          static_cast<const Object*>(d)}) {
    if (!o || o->magic != kMagic) return kInvalid;
  }
  bool f32 = a->type == 0;
  // A result of bf16 is for factors of bf16.
  bool brain = a->type == 14 && d->type == 14;
  if (a->type != b->type || c->type != d->type || !(d->type == 0 || brain) || desc->scale != 0) {
    return kNotSupported;
  }
  if (desc->compute != 68 && !(desc->compute == 77 && f32)) return kNotSupported;
  Matrix left = matrix(a, nullptr, get<int32_t>(desc, 3, 0));
  Matrix right = matrix(b, nullptr, get<int32_t>(desc, 4, 0));
  if (left.rows() != d->rows || right.cols() != d->cols || left.cols() != right.rows() ||
      c->rows != d->rows || c->cols != d->cols) {
    return kInvalid;
  }
  for (const Layout* l : {a, b, c, d}) {
    if (l->ld < l->rows || get<int32_t>(l, 5, 1) != get<int32_t>(d, 5, 1)) return kInvalid;
  }
  uint32_t epilogue = get<uint32_t>(desc, 7, 1);
  bool biased = get<const void*>(desc, 8, nullptr) != nullptr;
  if (epilogue & kAux) {
    int64_t ld = get<int64_t>(desc, 12, 0);
    uintptr_t to = reinterpret_cast<uintptr_t>(get<const void*>(desc, 11, nullptr));
    if (!(epilogue & kGelu) || to == 0 || to % 16 != 0 || ld < d->rows || ld % 8 != 0) {
      return kInvalid;
    }
  }
  if (epilogue & kGelu && refuses("gelu")) return kNotSupported;
  uint32_t known = epilogue == 1 ? 0 : epilogue & ~(kBias | kGelu | kAux);
  return known == 0 && (biased || !(epilogue & kBias)) ? kSuccess : kInvalid;
}

}  // namespace

EXPORT size_t cublasLtGetVersion() { return 130102; }

EXPORT int cublasLtCreate(void** handle) {
  *handle = new Object{kMagic, {}};
  return kSuccess;
}
EXPORT int cublasLtDestroy(void* handle) {
  delete static_cast<Object*>(handle);
  return kSuccess;
}

EXPORT int cublasLtMatmulDescCreate(void** desc, int compute, int scale) {
  Desc* d = new Desc;
  d->magic = kMagic;
  d->compute = compute;
  d->scale = scale;
  *desc = d;
  return kSuccess;
}
EXPORT int cublasLtMatmulDescDestroy(void* desc) {
  delete static_cast<Desc*>(desc);
  return kSuccess;
}
EXPORT int cublasLtMatmulDescSetAttribute(void* desc, int attribute, const void* value,
                                          size_t bytes) {
  bool eight = attribute == 8 || attribute == 11 || attribute == 12;
  size_t want = eight ? 8 : attribute == 3 || attribute == 4 || attribute == 7 ? 4 : 0;
  if (want == 0) return kNotSupported;
  return put(static_cast<Desc*>(desc), attribute, value, bytes, want);
}

EXPORT int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t cols,
                                      int64_t ld) {
  if ((type != 0 && type != 2 && type != 14) || rows == 0 || cols == 0) return kInvalid;
  Layout* l = new Layout;
  l->magic = kMagic;
  l->type = type;
  l->rows = static_cast<int64_t>(rows);
  l->cols = static_cast<int64_t>(cols);
  l->ld = ld;
  *layout = l;
  return kSuccess;
}
EXPORT int cublasLtMatrixLayoutDestroy(void* layout) {
  delete static_cast<Layout*>(layout);
  return kSuccess;
}
EXPORT int cublasLtMatrixLayoutSetAttribute(void* layout, int attribute, const void* value,
                                            size_t bytes) {
  if (attribute != 5 && attribute != 6) return kNotSupported;
  return put(static_cast<Layout*>(layout), attribute, value, bytes, attribute == 5 ? 4 : 8);
}

EXPORT int cublasLtMatmulPreferenceCreate(void** preference) {
  *preference = new Object{kMagic, {}};
  return kSuccess;
}
EXPORT int cublasLtMatmulPreferenceDestroy(void* preference) {
  delete static_cast<Object*>(preference);
  return kSuccess;
}
EXPORT int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value,
                                                size_t bytes) {
  bool known = attribute == 1 || attribute == 3 || (attribute >= 5 && attribute <= 8);
  if (!known) return kNotSupported;
  return put(static_cast<Object*>(preference), attribute, value, bytes, attribute == 1 ? 8 : 4);
}

EXPORT int cublasLtMatmulAlgoGetHeuristic(void* handle, void* desc, void* a, void* b, void* c,
                                          void* d, void* preference, int wanted, Heuristic* results,
                                          int* found) {
  *found = 0;
  Object* p = static_cast<Object*>(preference);
  if (!handle || wanted < 1 || !p || p->magic != kMagic) return kInvalid;
  // Sums in place would come in any order.
  if (get<uint32_t>(p, 3, 7) & 1) return kInvalid;
  if (get<uint64_t>(p, 1, 0) < kWorkspace || refuses("heuristic")) return kNotSupported;
  int status = check(static_cast<Desc*>(desc), static_cast<Layout*>(a), static_cast<Layout*>(b),
                     static_cast<Layout*>(c), static_cast<Layout*>(d));
  if (status != kSuccess) return status;
  *results = {{{kMagic, get<uint32_t>(p, 5, 256), get<uint32_t>(p, 6, 256),
                get<uint32_t>(p, 7, 256), get<uint32_t>(p, 8, 256)}},
              kWorkspace,
              kSuccess,
              1,
              {}};
  *found = 1;
  return kSuccess;
}

#ifndef LACKS_MATMUL
namespace {

// A product as it was asked for: what it names may change before a graph runs it.
struct Call {
  Desc op;
  Layout left, right, y;
  const void *a, *b;
  void* d;
  float alpha, beta;
  void* workspace;
  size_t bytes;
};

void multiply(const Call& p) {
  std::memset(p.workspace, 0xff, p.bytes);
  const Desc* op = &p.op;
  const Layout* y = &p.y;
  void* d = p.d;
  Matrix left = matrix(&p.left, p.a, get<int32_t>(op, 3, 0));
  Matrix right = matrix(&p.right, p.b, get<int32_t>(op, 4, 0));
  float scale = p.alpha, keep = p.beta;
  uint32_t epilogue = get<uint32_t>(op, 7, 1);
  const void* bias = epilogue & kBias ? get<const void*>(op, 8, nullptr) : nullptr;
  void* aux = epilogue & kAux ? get<void*>(op, 11, nullptr) : nullptr;
  bool brain = y->type == 14;  // a bias and what y is made of are of the result's type
  auto set = [&](void* data, int64_t i, float value) {
    if (brain) {
      static_cast<uint16_t*>(data)[i] = roundedToBrain(value);
    } else {
      static_cast<float*>(data)[i] = value;
    }
  };
  for (int64_t n = 0; n < left.batch; n++) {
    int64_t first = n * get<int64_t>(y, 6, 0);
    for (int64_t j = 0; j < y->cols; j++) {
      for (int64_t i = 0; i < y->rows; i++) {
        float sum = 0;
        for (int64_t k = 0; k < left.cols(); k++) sum += left.at(n, i, k) * right.at(n, k, j);
        int64_t at = first + i + j * y->ld;
        float value = scale * sum;
        if (keep != 0) value += keep * elementOf(d, brain, at);
        if (bias) value += elementOf(bias, brain, i);
        if (aux) set(aux, i + j * get<int64_t>(op, 12, 0), value);
        set(d, at, epilogue & kGelu ? gelu(value) : value);
      }
    }
  }
  if (const char* log = std::getenv("LOWRANK_SHIM_BLAS_LOG")) {
    if (std::FILE* file = std::fopen(log, "a")) {
      std::fprintf(file, "type %d%s, %lld x %lld x %lld, batch %lld%s%s%s\n", left.l->type,
                   op->compute == 77 ? " in TF32" : "", static_cast<long long>(y->cols),
                   static_cast<long long>(y->rows), static_cast<long long>(left.cols()),
                   static_cast<long long>(left.batch), bias ? ", bias" : "",
                   epilogue & kGelu ? ", gelu" : "", aux ? ", aux" : "");
      std::fclose(file);
    }
  }
}

}  // namespace

EXPORT int cublasLtMatmul(void* handle, void* desc, const void* alpha, const void* a, void* aLayout,
                          const void* b, void* bLayout, const void* beta, const void* c,
                          void* cLayout, void* d, void* dLayout, const Algo* algo, void* workspace,
                          size_t bytes, void* stream) {
  const Desc* op = static_cast<Desc*>(desc);
  const Layout* y = static_cast<Layout*>(dLayout);
  int status = check(op, static_cast<Layout*>(aLayout), static_cast<Layout*>(bLayout),
                     static_cast<Layout*>(cLayout), y);
  if (status != kSuccess) return status;
  if (!handle || !stream || !algo || algo->data[0] != kMagic || !workspace || bytes < kWorkspace) {
    return kInvalid;
  }
  const void* pointers[] = {a, b, c, d};
  for (int i = 0; i < 4; i++) {
    if (reinterpret_cast<uintptr_t>(pointers[i]) % algo->data[i + 1] != 0) return kInvalid;
  }
  if (c != d) return kNotSupported;
  if (refuses("matmul")) return kFailed;
  Call call = {
      *op, *static_cast<Layout*>(aLayout),    *static_cast<Layout*>(bLayout),   *y,        a,    b,
      d,   *static_cast<const float*>(alpha), *static_cast<const float*>(beta), workspace, bytes};
  static_cast<cudaShimStream*>(stream)->enqueue([call] { multiply(call); });
  return kSuccess;
}
#endif
