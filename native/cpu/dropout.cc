// Dropout whose mask is a function of (seed, stream, step, element), so it is never stored.
#include <cmath>

#include "kernels.h"

namespace lowrank {

namespace {

void dropout(const Args& args) {
  args.counts(2, 4);
  Floats x = floats(args, 0);
  args.sameShape(0, 1);
  const View& view = args.activations(1);
  double p = args.attrs[0];
  EXPECT(args, p >= 0 && p <= 1, "a probability from 0 to 1", std::to_string(p));
  uint64_t seed = static_cast<uint64_t>(args.integer(1, 0, int64_t{1} << 53));
  DropoutKey key = {};
  key.k0 = static_cast<uint32_t>(seed);
  key.k1 = static_cast<uint32_t>(seed >> 32);
  key.stream = static_cast<uint32_t>(args.integer(2, 0, UINT32_MAX));
  key.step = static_cast<uint32_t>(args.integer(3, 0, UINT32_MAX));
  // u = word / 2^32 >= p, both as doubles: word >= ceil(p * 2^32), and the product is exact.
  key.threshold = static_cast<uint64_t>(std::ceil(p * 4294967296.0));
  key.keep = p < 1 ? static_cast<float>(1 / (1 - p)) : 0.0f;
  Activations out(args, view);
  float* y = out;
  auto f = args.context.isa->dropout;
  args.context.ranges(args[0].count, Context::kGrain / 2,
                      [&](int64_t i, int64_t e, int) { f(x, y, i, e - i, &key); });
  out.settle();
}

}  // namespace

void registerDropout(Registry& r) { r.push_back({"dropout", dropout}); }

}  // namespace lowrank
