// Dropout whose mask is a function of (seed, stream, step, element), so it is never stored.
#include <cmath>

#include "../common/philox.h"
#include "kernels.h"

namespace lowrank {

namespace {

void dropout(const Args& args) {
  args.counts(2, 4);
  Floats x = floats(args, 0);
  args.sameShape(0, 1);
  float* y = args.out(1).as<float>();
  double p = args.attrs[0];
  EXPECT(args, p >= 0 && p <= 1, "a probability from 0 to 1", std::to_string(p));
  uint64_t seed = static_cast<uint64_t>(args.integer(1, 0, int64_t{1} << 53));
  uint32_t stream = static_cast<uint32_t>(args.integer(2, 0, UINT32_MAX));
  uint32_t step = static_cast<uint32_t>(args.integer(3, 0, UINT32_MAX));
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  float keep = p < 1 ? static_cast<float>(1 / (1 - p)) : 0.0f;
  // u = word / 2^32 >= p, both as doubles: word >= p * 2^32, which is exact.
  double threshold = p * 4294967296.0;
  args.context.ranges(args[0].count, Context::kGrain, [&](int64_t from, int64_t to, int) {
    for (int64_t i = from; i < to; i += 4) {
      uint64_t block = static_cast<uint64_t>(i) / 4;
      Philox r = philox(k0, k1, static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), stream, step);
      for (int64_t j = 0; j < 4 && i + j < to; j++) {
        y[i + j] = static_cast<double>(r.word[j]) >= threshold ? x[i + j] * keep : 0.0f;
      }
    }
  });
}

}  // namespace

void registerDropout(Registry& r) { r.push_back({"dropout", dropout}); }

}  // namespace lowrank
