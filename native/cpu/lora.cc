// Rank-r products of a mixed batch: every row of the batch has its own A and B, or none.
#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace lowrank {

namespace {

// Rows [from, to) of x and y, flat, that use adapter `group`.
struct Segment {
  int64_t from, to;
  int group;
};

// z = y + s_g (x A_g^T) B_g^T for the adapter g of each row of the batch; z = y without one.
void addLowRankRows(const Args& args) {
  EXPECT(args, args.count >= 3 && args.count % 2 == 1, "y, x, pairs of A and B, and z",
         std::to_string(args.count) + " tensors");
  size_t adapters = (args.count - 3) / 2;
  const View &y = args[0], &x = args[1], &z = args.out(args.count - 1);
  EXPECT(args, x.rank >= 2 && y.rank == x.rank && x.dims[0] == y.dims[0] && x.rows() == y.rows(),
         "y [B, .., O] and x [B, .., I]", y.describe() + " and " + x.describe());
  EXPECT(args, isFloat(x.dtype), "x of f32, f16 or bf16", x.describe());
  args.sameShape(0, args.count - 1);
  int64_t batch = x.dims[0], in = x.last(), out = y.last();
  EXPECT(args, args.attrCount == adapters + static_cast<size_t>(batch),
         "a scale for each adapter and an adapter for each row",
         std::to_string(args.attrCount) + " attributes");
  int64_t most = 0;
  for (size_t i = 0; i < adapters; i++) {
    const View &a = args[2 + 2 * i], &b = args[3 + 2 * i];
    EXPECT(args,
           isFloat(a.dtype) && isFloat(b.dtype) && a.rank == 2 && b.rank == 2 && a.dims[1] == in &&
               b.dims[0] == out && b.dims[1] == a.dims[0],
           "A [r, I] and B [O, r]", a.describe() + " and " + b.describe());
    most = std::max(most, a.dims[0]);
  }
  Floats base = floats(args, 0);
  float* sum = z.as<float>();
  if (z.count == 0) return;
  const float* from = base;
  if (from != sum) std::memcpy(sum, from, static_cast<size_t>(z.count) * sizeof(float));

  // Neighbouring rows of one adapter are one product, unless it is long: threads share them.
  int64_t each = x.rows() / batch, limit = std::max<int64_t>(each, 64);
  std::vector<Segment> segments;
  for (int64_t b = 0; b < batch; b++) {
    int group = static_cast<int>(
        args.integer(adapters + static_cast<size_t>(b), -1, static_cast<int64_t>(adapters) - 1));
    if (group < 0 || most == 0) continue;
    Segment* last = segments.empty() ? nullptr : &segments.back();
    if (last && last->group == group && last->to == b * each &&
        last->to - last->from + each <= limit) {
      last->to += each;
    } else {
      segments.push_back({b * each, (b + 1) * each, group});
    }
  }
  const GemmKernels& product = args.context.isa->product;
  int64_t longest = 0;
  for (const Segment& s : segments) longest = std::max(longest, s.to - s.from);
  int64_t own = product.scratch + longest * most;
  Workspace held(args.context.memory, static_cast<uint64_t>(own) * sizeof(float) *
                                          static_cast<uint64_t>(args.context.threads));
  float* scratch = held.as<float>();
  size_t xSize = dtypeSize(x.dtype);
  args.context.chunks(segments.size(), [&](int64_t at, int worker) {
    const Segment& s = segments[static_cast<size_t>(at)];
    const View& a = args[2 + 2 * static_cast<size_t>(s.group)];
    const View& b = args[3 + 2 * static_cast<size_t>(s.group)];
    int64_t r = a.dims[0], rows = s.to - s.from;
    if (r == 0 || in == 0) return;
    float *work = scratch + worker * own, *h = work + product.scratch;
    const char* row = static_cast<const char*>(x.data) + static_cast<size_t>(s.from * in) * xSize;
    GemmTask down = gemmTask(rows, r, in, {row, static_cast<int>(x.dtype), in, 1},
                             {a.data, static_cast<int>(a.dtype), 1, in}, h, r);
    down.alpha = static_cast<float>(args.attrs[s.group]);
    product.gemm(&down, 0, rows, 0, r, work);
    GemmTask up = gemmTask(rows, out, r, {h, static_cast<int>(DType::f32), r, 1},
                           {b.data, static_cast<int>(b.dtype), 1, r}, sum + s.from * out, out);
    up.accumulate = true;
    product.gemm(&up, 0, rows, 0, out, work);
  });
}

}  // namespace

void registerLora(Registry& r) { r.push_back({"addLowRankRows", addLowRankRows}); }

}  // namespace lowrank
