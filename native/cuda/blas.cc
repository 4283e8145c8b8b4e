#include "blas.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <vector>

namespace lowrank {

namespace {

// The part of cublasLt.h that is used here; values as in the documentation of CUDA 12 and 13.
constexpr int kSuccess = 0;
constexpr int kFloat32 = 0, kHalf = 2, kBfloat16 = 14;                    // cudaDataType_t
constexpr int kCompute32F = 68, kComputeFastTf32 = 77;                    // cublasComputeType_t
constexpr int kAsIs = 0, kTransposed = 1;                                 // cublasOperation_t
constexpr int kTransA = 3, kTransB = 4, kEpilogue = 7, kBiasPointer = 8;  // of a product
constexpr int kAuxPointer = 11, kAuxLd = 12;
constexpr uint32_t kEpilogueDefault = 1, kEpilogueBias = 4, kEpilogueGelu = 32, kEpilogueAux = 128;
constexpr int kBatchCount = 5, kBatchOffset = 6;      // of a layout
constexpr int kMaxWorkspace = 1, kReductionMask = 3;  // of a preference
constexpr int kAlignmentA = 5;                        // then of B, C and D
// Sums of parts in the workspace, in a pass of their own; none is always allowed. Not in place.
constexpr uint32_t kReductionCompute = 2;

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

struct Api {
  void* library = nullptr;
  std::string state;  // which library, or why there is none

  size_t (*getVersion)();
  int (*create)(void** handle);
  int (*destroy)(void* handle);
  int (*descCreate)(void** desc, int compute, int scaleType);
  int (*descDestroy)(void* desc);
  int (*descSet)(void* desc, int attribute, const void* value, size_t bytes);
  int (*layoutCreate)(void** layout, int type, uint64_t rows, uint64_t cols, int64_t ld);
  int (*layoutDestroy)(void* layout);
  int (*layoutSet)(void* layout, int attribute, const void* value, size_t bytes);
  int (*preferenceCreate)(void** preference);
  int (*preferenceDestroy)(void* preference);
  int (*preferenceSet)(void* preference, int attribute, const void* value, size_t bytes);
  int (*heuristic)(void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference,
                   int wanted, Heuristic* results, int* found);
  int (*matmul)(void* handle, void* desc, const void* alpha, const void* a, void* aLayout,
                const void* b, void* bLayout, const void* beta, const void* c, void* cLayout,
                void* d, void* dLayout, const Algo* algo, void* workspace, size_t bytes,
                cudaStream_t stream);
};

std::vector<std::string> candidates() {
#ifdef LOWRANK_SHIM_BLAS  // the tests' own; NVIDIA's would meet the shim's memory
  const char* path = std::getenv(LOWRANK_SHIM_BLAS);
  return path && *path ? std::vector<std::string>{path} : std::vector<std::string>{};
#else
  std::vector<std::string> all;
  const char* const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
  const char* const folders[] = {"/usr/local/cuda/lib64/", "/usr/local/cuda-13/lib64/",
                                 "/usr/local/cuda-12/lib64/", "/opt/cuda/lib64/"};
  for (const char* name : names) all.push_back(name);
  for (const char* folder : folders) {
    for (const char* name : names) all.push_back(std::string(folder) + name);
  }
  return all;
#endif
}

// The first missing function, or null.
const char* bindAll(Api& api) {
  struct Symbol {
    const char* name;
    void* place;
  };
  const Symbol symbols[] = {
      {"cublasLtGetVersion", &api.getVersion},
      {"cublasLtCreate", &api.create},
      {"cublasLtDestroy", &api.destroy},
      {"cublasLtMatmulDescCreate", &api.descCreate},
      {"cublasLtMatmulDescDestroy", &api.descDestroy},
      {"cublasLtMatmulDescSetAttribute", &api.descSet},
      {"cublasLtMatrixLayoutCreate", &api.layoutCreate},
      {"cublasLtMatrixLayoutDestroy", &api.layoutDestroy},
      {"cublasLtMatrixLayoutSetAttribute", &api.layoutSet},
      {"cublasLtMatmulPreferenceCreate", &api.preferenceCreate},
      {"cublasLtMatmulPreferenceDestroy", &api.preferenceDestroy},
      {"cublasLtMatmulPreferenceSetAttribute", &api.preferenceSet},
      {"cublasLtMatmulAlgoGetHeuristic", &api.heuristic},
      {"cublasLtMatmul", &api.matmul},
  };
  for (const Symbol& s : symbols) {
    void* found = dlsym(api.library, s.name);
    if (!found) return s.name;
    *static_cast<void**>(s.place) = found;
  }
  return nullptr;
}

Api openApi() {
  Api api;
  std::string missing;
  for (const std::string& name : candidates()) {
    api.library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!api.library) continue;
    const char* symbol = bindAll(api);
    if (!symbol) {
      Dl_info info = {};
      bool known = dladdr(reinterpret_cast<void*>(api.matmul), &info) != 0 && info.dli_fname;
      size_t v = api.getVersion();
      api.state = "cuBLASLt " + std::to_string(v / 10000) + "." + std::to_string(v / 100 % 100) +
                  " (" + (known ? info.dli_fname : name) + ")";
      return api;
    }
    missing += "; " + name + " lacks " + symbol;
    dlclose(api.library);
    api.library = nullptr;
  }
  std::string looked;
  for (const std::string& name : candidates()) looked += (looked.empty() ? "" : ", ") + name;
  api.state = "own kernels; cuBLASLt was not found (looked for " +
              (looked.empty() ? std::string("none") : looked) + missing +
              "). Install CUDA's cuBLAS 12 or 13, or add its folder to LD_LIBRARY_PATH";
  return api;
}

// One for the process; it stays open.
const Api& theApi() {
  static const Api api = openApi();
  return api;
}

int typeOf(DType t) { return t == DType::f32 ? kFloat32 : t == DType::f16 ? kHalf : kBfloat16; }

// A matrix as cuBLASLt sees it: column-major, `ld` between columns, `step` between batches.
struct Layout {
  int64_t rows, cols, ld, step;
  int op;
};

// A factor [lines, depth] or [depth, lines] whose lines become rows (or columns) of yᵀ.
Layout layoutOf(const Factor& f, bool isA, int64_t lines, int64_t depth, int64_t step) {
  bool deep = (isA ? f.col : f.row) == 1;  // depth runs along memory
  int64_t ld = deep ? (isA ? f.row : f.col) : (isA ? f.col : f.row);
  Layout l = deep ? Layout{depth, lines, ld, step, kAsIs} : Layout{lines, depth, ld, step, kAsIs};
  l.ld = std::max(l.ld, l.rows);  // a single column may have any
  // yᵀ [n,m] = bᵀ [n,k] aᵀ [k,m]
  l.op = deep == isA ? kAsIs : kTransposed;
  return l;
}

// Batches as one step for each factor; false where the axes do not fall in with that.
bool oneStep(const Batches& s, int64_t& a, int64_t& b) {
  a = b = 0;
  bool first = true;
  int64_t inner = 1;
  for (int d = s.axes - 1; d >= 0; d--) {
    if (s.dims[d] == 1) continue;
    if (first) {
      a = s.a[d];
      b = s.b[d];
    } else if (s.a[d] != a * inner || s.b[d] != b * inner) {
      return false;
    }
    first = false;
    inner *= s.dims[d];
  }
  return true;
}

uint32_t alignmentOf(const void* p) {
  uintptr_t bits = reinterpret_cast<uintptr_t>(p) | 256;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

}  // namespace

class Blas {
 public:
  Blas() {
    if (theApi().library && theApi().create(&handle_) != kSuccess) handle_ = nullptr;
  }
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;
  ~Blas() {
    const Api& api = theApi();
    for (auto& [key, plan] : plans_) drop(plan);
    if (handle_) api.destroy(handle_);
  }

  bool product(const CudaArgs& args, const Product& p, bool& after);
  bool there() const { return handle_ != nullptr; }

  std::string state() const {
    const Api& api = theApi();
    if (!api.library) return api.state;
    if (!handle_) return "own kernels; " + api.state + " does not start on this device";
    size_t refused = 0;
    for (const auto& [key, plan] : plans_) refused += plan.usable || plan.gelu ? 0 : 1;
    if (refused == 0) return api.state;
    return api.state +
           "; own kernels where it has no way (shapes so far: " + std::to_string(refused) + ")";
  }

 private:
  using Key = std::array<int64_t, 22>;
  struct Plan {
    void *desc = nullptr, *a = nullptr, *b = nullptr, *y = nullptr;
    Algo algo = {};
    size_t workspace = 0;
    bool usable = false;
    bool gelu = false;  // without which the product itself may have a way
  };

  static void drop(Plan& plan) {
    const Api& api = theApi();
    if (plan.desc) api.descDestroy(plan.desc);
    for (void* layout : {plan.a, plan.b, plan.y}) {
      if (layout) api.layoutDestroy(layout);
    }
  }
  bool prepare(Plan& plan, const Key& key, const void* bias, const void* aux);
  bool choose(Plan& plan, const Key& key);
  bool multiply(const CudaArgs& args, const Product& p, uint32_t epilogue);

  void* handle_ = nullptr;
  std::map<Key, Plan> plans_;
};

namespace {

// What a key holds, in order.
enum Field : size_t {
  kType = 0,
  kTf32 = 1,
  kEpilogueOf = 2,
  kBatch = 3,
  kLeft = 4,   // rows, columns, leading dimension, step, operation
  kRight = 9,  // the same
  kRows = 14,
  kCols = 15,
  // The left factor, the right one, y, the bias and what y is made of, in bytes.
  kAligned = 16,
  kResult = 21  // type of y
};
enum Part : size_t { kStep = 3, kOp = 4 };

bool makeLayout(void** layout, int type, const int64_t* rowsColsLd, int64_t batch, int64_t step) {
  const Api& api = theApi();
  if (api.layoutCreate(layout, type, static_cast<uint64_t>(rowsColsLd[0]),
                       static_cast<uint64_t>(rowsColsLd[1]), rowsColsLd[2]) != kSuccess) {
    *layout = nullptr;
    return false;
  }
  int32_t count = static_cast<int32_t>(batch);
  return batch == 1 || (api.layoutSet(*layout, kBatchCount, &count, sizeof count) == kSuccess &&
                        api.layoutSet(*layout, kBatchOffset, &step, sizeof step) == kSuccess);
}

}  // namespace

// The fastest way the library names for a shape; false where it has none.
bool Blas::choose(Plan& plan, const Key& key) {
  const Api& api = theApi();
  void* preference = nullptr;
  if (api.preferenceCreate(&preference) != kSuccess) return false;
  uint64_t workspace = uint64_t{32} << 20;
  bool set =
      api.preferenceSet(preference, kMaxWorkspace, &workspace, sizeof workspace) == kSuccess &&
      api.preferenceSet(preference, kReductionMask, &kReductionCompute, sizeof kReductionCompute) ==
          kSuccess;
  // Of a, b, c and d; the last two are both y.
  for (int i = 0; i < 4 && set; i++) {
    uint32_t bytes = static_cast<uint32_t>(key[kAligned + static_cast<size_t>(std::min(i, 2))]);
    set = api.preferenceSet(preference, kAlignmentA + i, &bytes, sizeof bytes) == kSuccess;
  }
  Heuristic best = {};
  int found = 0;
  bool good = set &&
              api.heuristic(handle_, plan.desc, plan.a, plan.b, plan.y, plan.y, preference, 1,
                            &best, &found) == kSuccess &&
              found > 0 && best.status == kSuccess;
  api.preferenceDestroy(preference);
  plan.algo = best.algo;
  plan.workspace = best.workspace;
  return good;
}

bool Blas::prepare(Plan& plan, const Key& key, const void* bias, const void* aux) {
  const Api& api = theApi();
  int type = static_cast<int>(key[kType]);
  int compute = key[kTf32] ? kComputeFastTf32 : kCompute32F;
  if (api.descCreate(&plan.desc, compute, kFloat32) != kSuccess) {
    plan.desc = nullptr;
    return false;
  }
  int32_t left = static_cast<int32_t>(key[kLeft + kOp]),
          right = static_cast<int32_t>(key[kRight + kOp]);
  uint32_t epilogue = static_cast<uint32_t>(key[kEpilogueOf]);
  int64_t y[3] = {key[kRows], key[kCols], key[kRows]};
  return api.descSet(plan.desc, kTransA, &left, sizeof left) == kSuccess &&
         api.descSet(plan.desc, kTransB, &right, sizeof right) == kSuccess &&
         api.descSet(plan.desc, kEpilogue, &epilogue, sizeof epilogue) == kSuccess &&
         (!bias || api.descSet(plan.desc, kBiasPointer, &bias, sizeof bias) == kSuccess) &&
         (!aux || (api.descSet(plan.desc, kAuxPointer, &aux, sizeof aux) == kSuccess &&
                   api.descSet(plan.desc, kAuxLd, &key[kRows], sizeof(int64_t)) == kSuccess)) &&
         makeLayout(&plan.a, type, &key[kLeft], key[kBatch], key[kLeft + kStep]) &&
         makeLayout(&plan.b, type, &key[kRight], key[kBatch], key[kRight + kStep]) &&
         makeLayout(&plan.y, static_cast<int>(key[kResult]), y, key[kBatch],
                    key[kRows] * key[kCols]) &&
         choose(plan, key);
}

// The library's GELU is the tanh form in an arithmetic of its own, so it is for `compute: bf16`,
// which rounds more than that. What it is taken of is written beside y in lines of whole eights.
bool libraryGelu(const CudaArgs& args, const Product& p) {
  return args.device.brain && p.after.to && !p.after.gate && p.after.activation == kGeluTanhOf &&
         !p.accumulate && p.batches.count == 1 && (p.after.only || p.n % 8 == 0);
}

bool Blas::product(const CudaArgs& args, const Product& p, bool& after) {
  after = false;
  uint32_t epilogue = p.bias ? kEpilogueBias : kEpilogueDefault;
  if (libraryGelu(args, p)) {
    uint32_t gelu =
        kEpilogueGelu | (p.bias ? kEpilogueBias : 0) | (p.after.only ? 0 : kEpilogueAux);
    after = multiply(args, p, gelu);
    if (after) return true;
  }
  return multiply(args, p, epilogue);
}

bool Blas::multiply(const CudaArgs& args, const Product& p, uint32_t epilogue) {
  const Api& api = theApi();
  int64_t aStep = 0, bStep = 0;
  bool fits = handle_ && p.a.dtype == p.b.dtype && p.batches.count <= INT32_MAX &&
              oneStep(p.batches, aStep, bStep) && (!p.bias || p.biasType == p.yType);
  if (!fits) return false;
  // Column-major yᵀ: b is its left factor.
  Layout left = layoutOf(p.b, false, p.n, p.k, bStep), right = layoutOf(p.a, true, p.m, p.k, aStep);
  Key key = {};
  key[kType] = typeOf(p.a.dtype);
  key[kTf32] = args.device.tf32 && p.a.dtype == DType::f32;
  key[kEpilogueOf] = epilogue;
  key[kBatch] = p.batches.count;
  int64_t* at = &key[kLeft];
  for (const Layout& l : {left, right}) {
    for (int64_t v : {l.rows, l.cols, l.ld, l.step, static_cast<int64_t>(l.op)}) *at++ = v;
  }
  key[kResult] = typeOf(p.yType);
  key[kRows] = p.n;
  key[kCols] = p.m;
  bool gelu = (epilogue & kEpilogueGelu) != 0;
  void* y = gelu ? p.after.to : p.y;
  const void* aux = (epilogue & kEpilogueAux) != 0 ? p.y : nullptr;
  const void* pointers[] = {p.b.data, p.a.data, y, p.bias, aux};
  for (size_t i = 0; i < 5; i++) key[kAligned + i] = alignmentOf(pointers[i]);
  auto [place, fresh] = plans_.try_emplace(key);
  Plan& plan = place->second;
  plan.gelu = gelu;
  if (fresh) plan.usable = prepare(plan, key, p.bias, aux);
  if (!plan.usable) return false;
  if ((p.bias && api.descSet(plan.desc, kBiasPointer, &p.bias, sizeof p.bias) != kSuccess) ||
      (aux && api.descSet(plan.desc, kAuxPointer, &aux, sizeof aux) != kSuccess)) {
    plan.usable = false;
    return false;
  }
  Workspace held = plan.workspace ? Workspace(args.device.memory, plan.workspace) : Workspace();
  float beta = p.accumulate ? 1.0f : 0.0f;
  int status = api.matmul(
      handle_, plan.desc, &p.alpha, p.b.data, plan.a, p.a.data, plan.b, &beta, y, plan.y, y, plan.y,
      &plan.algo, plan.workspace ? held.as<void>() : nullptr, plan.workspace, args.device.stream);
  // A refused call has done nothing; what ran and failed shows at the next check of the stream.
  if (status != kSuccess) plan.usable = false;
  return status == kSuccess;
}

namespace {

Blas& blasOf(CudaContext& context) {
  if (!context.blas) context.blas = std::make_shared<Blas>();
  return *context.blas;
}

}  // namespace

bool blasProduct(const CudaArgs& args, const Product& p, bool& after) {
  return blasOf(args.device).product(args, p, after);
}

bool blasThere(CudaContext& context) { return blasOf(context).there(); }

std::string blasState(const CudaContext& context) {
  return context.blas ? context.blas->state() : theApi().state;
}

}  // namespace lowrank
