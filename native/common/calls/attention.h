// The calls of attention and its gradient.
#pragma once

#include "../call.h"

namespace lowrank {

// q [B, T, H, D], k and v [B, S, G, D].
struct AttentionCall {
  int64_t b, t, s, h, g, d, length, window;
  bool causal;
  float scale;
  const uint8_t* mask;  // [B, S] or null
};

// The mask is tensor 3 where there is one; `at` is the first tensor behind the inputs.
inline AttentionCall attentionInputs(const Call& args, size_t behind, size_t& at) {
  args.atLeast(3 + behind, 5);
  bool masked = args.integer(0, 0, 1) != 0;
  at = masked ? 4 : 3;
  args.counts(at + behind, 5);
  const View &q = args[0], &k = args[1], &v = args[2];
  EXPECT(args, q.rank == 4 && k.rank == 4 && v.rank == 4, "q, k and v of four axes",
         q.describe() + ", " + k.describe() + " and " + v.describe());
  AttentionCall s = {};
  s.b = q.dims[0];
  s.t = q.dims[1];
  s.h = q.dims[2];
  s.d = q.dims[3];
  s.s = k.dims[1];
  s.g = k.dims[2];
  EXPECT(args, s.g > 0 ? s.h % s.g == 0 : s.h == 0, "query heads a multiple of key heads",
         std::to_string(s.h) + " and " + std::to_string(s.g));
  args.shaped(1, {s.b, s.s, s.g, s.d});
  args.shaped(2, {s.b, s.s, s.g, s.d});
  if (masked) {
    args.shaped(3, {s.b, s.s});
    EXPECT(args, args[3].dtype == DType::u8 || args[3].dtype == DType::boolean, "a mask of u8",
           args[3].describe());
    s.mask = args[3].as<uint8_t>();
  }
  s.causal = args.integer(1, 0, 1) != 0;
  s.scale = static_cast<float>(args.attrs[2]);
  s.window = args.integer(3, 0, INT32_MAX);
  int64_t keyLength = args.integer(4, -1, s.s);
  s.length = keyLength < 0 ? s.s : keyLength;
  for (size_t i = 0; i < 3; i++) args.floating(i);
  return s;
}

// Into y and lse, from tensor `at` on.
inline AttentionCall attentionCall(const Call& args, size_t& at) {
  AttentionCall s = attentionInputs(args, 2, at);
  args.shaped(at, {s.b, s.t, s.h, s.d});
  args.shaped(at + 1, {s.b, s.h, s.t});
  args.activations(at);
  args.out(at + 1);
  return s;
}

// Of y, lse and dy, from tensor `at` on, into dq, dk and dv.
inline AttentionCall attentionGradCall(const Call& args, size_t& at) {
  AttentionCall s = attentionInputs(args, 6, at);
  for (size_t i = at; i < at + 3; i++) args.floating(i);
  args.shaped(at, {s.b, s.t, s.h, s.d});
  args.shaped(at + 1, {s.b, s.h, s.t});
  args.shaped(at + 2, {s.b, s.t, s.h, s.d});
  for (size_t i = 0; i < 3; i++) args.sameShape(i, at + 3 + i);
  for (size_t i = 0; i < 3; i++) args.activations(at + 3 + i);
  return s;
}

}  // namespace lowrank
