// The vector primitives that each instruction set provides; chosen at run time.
// Instruction-set files include only this, C headers and their intrinsics, so that no code built
// for a newer processor can be shared with the baseline.
#pragma once

#include <stdint.h>

namespace lowrank {

// y = op(x), element by element.
enum Unary {
  kNeg,
  kAbs,
  kExp,
  kLog,
  kSqrt,
  kRsqrt,
  kTanh,
  kSigmoid,
  kRelu,
  kSilu,
  kGeluErf,
  kGeluTanh,
  kUnaryCount
};

// y = op(a, b); each of a and b steps by 1 or stands still.
enum Binary { kAdd, kSub, kMul, kDiv, kMaximum, kMinimum, kBinaryCount };

// dx = op'(x) * dy
enum UnaryGrad { kSiluGrad, kGeluErfGrad, kGeluTanhGrad, kUnaryGradCount };

struct Finish;

// C[M,N] = alpha * A[M,K] B[K,N] (+ C) (+ bias[N]). Strides in elements; types are DType codes.
struct GemmTask {
  int64_t m, n, k;
  const void* a;
  int aType;
  int64_t aRow, aCol;
  const void* b;
  int bType;
  int64_t bRow, bCol;
  float* c;
  int64_t cRow, cCol;  // cCol is 1 but in few(), where cRow may be 1 instead
  float alpha;
  bool accumulate;
  const float* bias;
  int64_t k0, k1;              // the part of K to add now: whole blocks, in order
  const float *aPack, *bPack;  // all of A or of B for that part, packed; or null
  // What this thread packs next, to be fetched early: columns (with bPack, rows) and where in K.
  int64_t next0, next1, nextK;
  // What is done to C where its sums are complete, by who calls the functions below; or null.
  const Finish* finish;
};

// The products of one kind of arithmetic. An element's bits depend on K and its own row and column
// only, whichever of the functions computes it and however the work is cut.
struct GemmKernels {
  int64_t rowTile, colTile;     // of the register block
  int64_t rowBlock, colBlock;   // most rows or columns that a call packs at once
  int64_t scratch;              // floats of scratch that a call needs
  int64_t pair;                 // elements of K in one packed float: 1, or 2 of bf16
  int64_t fewRows, fewCols;     // limits of few() where bCol is 1
  int64_t turnedRows;           // and where bRow is
  int64_t narrowCols;           // most columns that narrow() is for
  int64_t (*depth)(int64_t k);  // elements of K in one block
  // Rows or columns with the last panel filled up; times depth()/pair, floats of a packed block.
  int64_t (*paddedRows)(int64_t m);
  int64_t (*paddedCols)(int64_t n);
  // Packs rows [m0,m1) or columns [n0,n1) for `elements` of K from p0; m0 and n0 are whole tiles.
  void (*packRows)(const GemmTask* task, int64_t m0, int64_t m1, int64_t p0, int64_t elements,
                   float* to);
  void (*packCols)(const GemmTask* task, int64_t n0, int64_t n1, int64_t p0, int64_t elements,
                   float* to);
  // The part [m0,m1) x [n0,n1) of C on the calling thread, m0 and n0 whole tiles.
  void (*gemm)(const GemmTask* task, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
               float* scratch);
  // A few rows by columns [n0,n1) in whole tiles, with aPack and bCol or bRow of 1.
  void (*few)(const GemmTask* task, int64_t n0, int64_t n1, float* scratch);
  // Rows [m0,m1) of an f32 A with aCol of 1 by all of at most narrowCols columns, with bPack; or
  // null.
  void (*narrow)(const GemmTask* task, int64_t m0, int64_t m1);
};

// y [.., cols] = w + p [.., r] q [r, cols]; rows of w and y are `step` elements apart, those of q
// qStep; types are DType codes.
struct RankMerge {
  const void* w;
  int wType;
  void* y;
  int yType;
  int64_t step, cols;
  const float* p;
  int64_t r;
  const float* q;
  int64_t qStep;
  bool past;  // whether y is too large for the caches and is written past them
};

// A tile of attention, and the channels of a row that lie together.
constexpr int64_t kTileQueries = 64, kTileKeys = 128, kTileChannels = 64;

// What a row sees or is seen by: [from, to) of a tile.
struct Span {
  int32_t from, to;
};

// Rows of memory that will be read or written soon, `step` bytes apart, each of some cache lines.
struct FetchRows {
  const char* at;
  int64_t step, rows, lines;
};
// Asked for from the last on, a few rows with each block of a product.
struct Fetch {
  FetchRows list[8];
  int count;
};

// A tile of the gradient: q and dy in chunks, keys and values turned, P and dS [queries, keys].
struct AttentionTile {
  const float *q, *dy, *keys, *values;
  const float *lse, *delta;  // of each query; delta times scale
  const float* mask;         // of each key, 0 where it is hidden; or null
  const Span *seen, *kept;   // keys of each query: what strips are cut to, and what is not hidden
  int64_t queries, d;
  float scale;
  bool partial;  // whether anything is hidden
  float *p, *ds;
  Fetch* fetch;
};

// Attention within a tile; see simd/attention.h, which says how rows lie in its scratch memory.
struct AttentionKernels {
  int64_t panel;  // keys of a panel of turned ones
  // Rows of x [rows, d] into chunks of chunkRows rows; and back, scaled by row, or added.
  void (*take)(const float* x, int64_t step, int64_t rows, int64_t d, int64_t chunkRows, float* to);
  void (*put)(const float* from, int64_t chunkRows, int64_t rows, int64_t d, const float* scale,
              bool add, float* x, int64_t step);
  // Panels of the turned rows of x [rows, d].
  void (*turn)(const float* x, int64_t step, int64_t rows, int64_t d, float* to);
  // to [rows, keys] = scale q k' where seen
  void (*scores)(const float* q, const float* keys, const Span* seen, int64_t rows, int64_t d,
                 float scale, float* to, Fetch* fetch);
  // Weights e^(score - top), 0 where not seen; top and sum go on from what they were, and what
  // counted before is worth `shrink` of it.
  void (*weigh)(const float* scores, const Span* seen, int64_t rows, float* weights, float* top,
                double* sum, float* shrink);
  // c [queries, d] += p b and c [keys, d] += p' b, cut to what is seen or sees
  void (*times)(const float* p, const Span* seen, int64_t queries, const float* b, int64_t d,
                float* c, Fetch* fetch);
  void (*turnedTimes)(const float* p, const Span* seeing, int64_t keys, const float* b, int64_t d,
                      float* c, Fetch* fetch);
  void (*gradTile)(const AttentionTile* tile);
  // out[i] = scale * the sum of a b over row i
  void (*rowDots)(const float* a, const float* b, int64_t step, int64_t rows, int64_t d,
                  float scale, float* out);
};

struct AdamWStep {
  float decay, beta1, oneMinusBeta1, beta2, oneMinusBeta2, stepSize, rootCorrection, eps, gradScale;
};

struct DropoutKey {
  uint32_t k0, k1, stream, step;
  uint64_t threshold;  // up to 2^32
  float keep;
};

struct IsaTable {
  const char* name;
  GemmKernels product;
  // The same with factors rounded to bf16 and sums in f32, for f32 and bf16; or null.
  const GemmKernels* brainProduct;

  void (*widenF16)(const uint16_t* x, float* y, int64_t n);
  void (*widenBf16)(const uint16_t* x, float* y, int64_t n);
  void (*narrowF16)(const float* x, uint16_t* y, int64_t n);
  void (*narrowBf16)(const float* x, uint16_t* y, int64_t n);

  void (*unary[kUnaryCount])(const float* x, float* y, int64_t n);
  void (*unaryGrad[kUnaryGradCount])(const float* x, const float* dy, float* dx, int64_t n);
  void (*binary[kBinaryCount])(const float* a, int64_t sa, const float* b, int64_t sb, float* y,
                               int64_t n);
  void (*affine)(const float* x, float scale, float shift, float* y, int64_t n);
  void (*swiglu)(const float* gate, const float* up, float* y, int64_t n);
  void (*swigluGrad)(const float* gate, const float* up, const float* dy, float* dgate, float* dup,
                     int64_t n);

  float (*maxOf)(const float* x, int64_t n);     // -inf when empty; NaN is passed over
  int64_t (*argMax)(const float* x, int64_t n);  // the first largest or the first NaN; n > 0
  double (*sum)(const float* x, int64_t n);
  double (*sumSquares)(const float* x, int64_t n);
  void (*moments)(const float* x, int64_t n, double* sums);  // the sum and the sum of squares
  double (*dot)(const float* a, const float* b, int64_t n);
  double (*dot3)(const float* a, const float* b, const float* c, int64_t n);
  // Sums of a b and of a b c.
  void (*dots)(const float* a, const float* b, const float* c, int64_t n, double* sums);
  // y = exp(scale * x - shift) and its sum; y may be x; without y only the sum.
  double (*expSum)(const float* x, float scale, float shift, float* y, int64_t n);

  void (*scaleMul)(const float* x, float s, const float* w, float* y, int64_t n);  // s * x * w
  void (*axpy)(float s, const float* x, float* y, int64_t n);                      // y += s * x
  // y = s * (w * d) + t * x + u
  void (*normGrad)(const float* w, const float* d, float s, const float* x, float t, float u,
                   float* y, int64_t n);
  // acc += x for n columns of rows `step` elements apart
  void (*addTo)(const float* x, int64_t rows, int64_t step, double* acc, int64_t n);
  // acc += d * (s * (x - shift)) for the same; shift and s of each row stand in stats
  void (*mulAddTo)(const float* d, const float* x, const float* stats, int64_t rows, int64_t step,
                   double* acc, int64_t n);
  void (*normalize)(const float* x, float shift, float s, const float* w, const float* b, float* y,
                    int64_t n);  // (x - shift)*s*w + b
  void (*softmaxGrad)(const float* y, const float* dy, float dot, float* dx,
                      int64_t n);  // y*(dy - dot)
  void (*logSoftmaxGrad)(const float* y, const float* dy, float sum, float* dx, int64_t n);
  // x1' = x1*c - x2*s, x2' = x2*c + x1*s
  void (*rotate)(const float* x1, const float* x2, const float* c, const float* s, float* y1,
                 float* y2, int64_t n);
  void (*adamw)(const float* g, float* p, float* m, float* v, const AdamWStep* step, int64_t n);
  // Elements [i, i + n) of a dropout, i a multiple of 4: kept, times `keep`, where word >=
  // threshold.
  void (*dropout)(const float* x, float* y, int64_t i, int64_t n, const DropoutKey* key);
  bool (*allFinite)(const float* x, int64_t n);
  // y [cols, rows] = x [rows, cols]^T of 32-bit words, rows of each their step apart
  void (*turnWords)(const uint32_t* x, int64_t xStep, int64_t rows, int64_t cols, uint32_t* y,
                    int64_t yStep);

  // Products with a side of rank r; see simd/lowrank.h.
  // Rows come as pointers, of which each is read from element `at` on.
  // h [rows, r] = x [rows, n] a [r, n]^T, rows of a aStep apart
  void (*rankDown)(const float* const* x, int64_t at, int64_t rows, const float* a, int64_t aStep,
                   int64_t r, int64_t n, float* h);
  // t [r, n] = b [n, r]^T, rows of t tStep apart
  void (*turn)(const float* b, int64_t n, int64_t r, float* t, int64_t tStep);
  // b [n, r] = t [r, n]^T, or added to b
  void (*turnBack)(const float* t, int64_t tStep, int64_t n, int64_t r, float* b, bool add);
  // c [rows, cols] += p [rows, r] q [r, cols], rows of q qStep apart
  void (*rankUp)(float* const* c, int64_t at, int64_t rows, int64_t cols, const float* p, int64_t r,
                 const float* q, int64_t qStep);
  // g [r, cols] = p [rows, r]^T x [rows, cols], or added to g; rows of g gStep apart. Ahead: as
  // many rows of x more follow
  void (*rankOuter)(const float* const* x, int64_t at, int64_t rows, const float* p, int64_t r,
                    int64_t cols, float* g, int64_t gStep, bool add, bool ahead);
  // y = w + p q, rounded to y's type; whether all of it is finite
  bool (*rankMerge)(const RankMerge* task, int64_t rows);

  AttentionKernels attention;
};

// The tables this processor can run, best first; the generic one is always there.
int supportedIsas(const IsaTable** tables, int capacity);

}  // namespace lowrank
