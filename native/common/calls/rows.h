// The calls that work row by row: embedding, rope, norms and cross-entropy.
#pragma once

#include "../call.h"

namespace lowrank {

// A table [v, c], and n ids of its rows.
struct TableRows {
  int64_t v, c, n;
  const int32_t* ids;
};

// Tensor `rows` is shaped as the ids with C behind.
inline TableRows tableRows(const Call& args, const View& table, size_t ids, size_t rows) {
  const int32_t* at = args.typed(ids, DType::i32).as<int32_t>();
  View want = args[ids];
  EXPECT(args, want.rank < kMaxRank, "ids of fewer axes", want.describe());
  want.dtype = args[rows].dtype;
  want.dims[want.rank++] = table.dims[1];
  EXPECT(args, want.sameShape(args[rows]),
         "tensor " + std::to_string(rows) + " as " + want.describe(), args[rows].describe());
  return {table.dims[0], table.dims[1], args[ids].count, at};
}

// table and ids to y.
inline TableRows embeddingRows(const Call& args) {
  args.counts(3, 0);
  const View& table = args[0];
  EXPECT(args, isFloat(table.dtype) && table.rank == 2, "a table [V, C] of f32, f16 or bf16",
         table.describe());
  TableRows r = tableRows(args, table, 1, 2);
  args.out(2);
  return r;
}

// ids and dy to the gradient of the table.
inline TableRows embeddingGradRows(const Call& args) {
  args.counts(3, 0);
  const View& table = args[2];
  EXPECT(args, table.rank == 2, "a table gradient [V, C]", table.describe());
  TableRows r = tableRows(args, table, 0, 1);
  args.floating(1);
  args.out(2);
  return r;
}

// x [tokens, heads, d]; pairs (i, i + half) are turned.
struct RopeCall {
  int64_t tokens, heads, d, half;
  double sign, factor;
  const int32_t* positions;
};

inline RopeCall ropeCall(const Call& args) {
  args.counts(4, 2);
  const View& x = args[0];
  EXPECT(args, x.rank == 4, "x [B, T, H, D]", x.describe());
  args.floating(0);
  args.floating(2);
  args.shaped(1, {x.dims[0], x.dims[1]});
  const int32_t* positions = args.typed(1, DType::i32).as<int32_t>();
  EXPECT(args, args[2].rank == 1 && 2 * args[2].count <= x.dims[3],
         "inverse frequencies for at most D/2 pairs", args[2].describe());
  args.sameShape(0, 3);
  args.activations(3);
  double sign = args.integer(0, 0, 1) ? -1 : 1;
  return {x.dims[0] * x.dims[1], x.dims[2], x.dims[3], args[2].count, sign,
          args.attrs[1],         positions};
}

// x [rows, n]; y, dx or dw in `out`.
struct NormRows {
  int64_t rows, n;
  double eps;
  const View& out;
};

// Tensor i is [n].
inline void checkNormVector(const Call& args, size_t i) {
  EXPECT(args, args[0].rank >= 1, "x with at least one axis", args[0].describe());
  args.shaped(i, {args[0].last()});
}

inline NormRows normRows(const Call& args, const View& out) {
  return {args[0].rows(), args[0].last(), args.attrs[0], out};
}

// x, w and, of a layer norm, b to y.
inline NormRows normCall(const Call& args, bool biased) {
  size_t out = biased ? 3 : 2;
  args.counts(out + 1, 1);
  for (size_t i = 0; i < out; i++) args.floating(i);
  for (size_t i = 1; i < out; i++) checkNormVector(args, i);
  args.sameShape(0, out);
  return normRows(args, args.activations(out));
}

// x, w and dy to dx.
inline NormRows normGradInput(const Call& args) {
  args.counts(4, 1);
  for (size_t i = 0; i < 3; i++) args.floating(i);
  checkNormVector(args, 1);
  args.sameShape(0, 2);
  args.sameShape(0, 3);
  return normRows(args, args.activations(3));
}

// x and dy to dw.
inline NormRows normGradWeight(const Call& args) {
  args.counts(3, 1);
  for (size_t i = 0; i < 2; i++) args.floating(i);
  args.sameShape(0, 1);
  checkNormVector(args, 2);
  return normRows(args, args.out(2));
}

// Logits [n, v] and a label a row.
struct LossRows {
  int64_t n, v, ignore;
  double smoothing;
  const int32_t* labels;
  float* out;
};

inline double lossSmoothing(const Call& args) {
  double smoothing = args.attrs[1];
  EXPECT(args, smoothing >= 0 && smoothing <= 1, "smoothing from 0 to 1",
         std::to_string(smoothing));
  return smoothing;
}

// Logits, labels as tensor i, and a number a row as the next one; nothing of `out`.
inline LossRows rowsOf(const Call& args, const View& logits, size_t i) {
  EXPECT(args, logits.rank == 2, "logits [N, V]", logits.describe());
  int64_t n = logits.dims[0], v = logits.dims[1];
  args.shaped(i, {n});
  args.shaped(i + 1, {n});
  const int32_t* labels = args.typed(i, DType::i32).as<int32_t>();
  int64_t ignore = args.integer(0, INT32_MIN, INT32_MAX);
  return {n, v, ignore, lossSmoothing(args), labels, nullptr};
}

// logits and labels to the loss, or with its gradient, a row, to that of the logits.
inline LossRows lossRows(const Call& args, bool gradient) {
  size_t out = gradient ? 3 : 2;
  args.counts(out + 1, 2);
  const View& logits = args.floating(0);
  if (gradient) args.floating(2);
  LossRows rows = rowsOf(args, logits, 1);
  if (gradient) args.sameShape(0, 3);
  rows.out = args.out(out).as<float>();
  return rows;
}

// The same, whose `out` are the logits, for the loss and the gradient in their place.
struct LossAndGrad {
  LossRows rows;
  float* loss;
  float factor;  // of the gradient
};

// labels to the loss and, in place, the logits.
inline LossAndGrad lossAndGrad(const Call& args) {
  args.counts(3, 3);
  LossRows rows = rowsOf(args, args[2], 0);
  float* loss = args.out(1).as<float>();
  rows.out = args.out(2).as<float>();
  return {rows, loss, static_cast<float>(args.attrs[2])};
}

}  // namespace lowrank
