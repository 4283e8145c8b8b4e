// Rows of a table by id, and the gradient of the table.
#include <algorithm>
#include <cstring>

#include "../common/calls/rows.h"
#include "kernels.h"

namespace lowrank {

namespace {

void checkIds(const Args& args, const TableRows& r) {
  for (int64_t i = 0; i < r.n; i++) {
    EXPECT(args, r.ids[i] >= 0 && r.ids[i] < r.v, "ids from 0 to " + std::to_string(r.v - 1),
           std::to_string(r.ids[i]) + " at " + std::to_string(i));
  }
}

void embedding(const Args& args) {
  TableRows r = embeddingRows(args);
  checkIds(args, r);
  const View& table = args[0];
  int64_t c = r.c;
  float* y = args[2].as<float>();
  const IsaTable& isa = *args.context.isa;
  args.context.rows(r.n, c, [&](int64_t from, int64_t to, int) {
    for (int64_t i = from; i < to; i++) {
      int64_t at = r.ids[i] * c;
      if (table.dtype == DType::f32) {
        std::memcpy(y + i * c, table.as<float>() + at, static_cast<size_t>(c) * sizeof(float));
      } else {
        auto widen = table.dtype == DType::f16 ? isa.widenF16 : isa.widenBf16;
        widen(table.as<uint16_t>() + at, y + i * c, c);
      }
    }
  });
}

// Threads share the columns, so that each row is summed in the order of ids; onto what is there
// where it does not begin from zeros.
template <bool Zeros>
void embeddingGrad(const Args& args) {
  TableRows r = embeddingGradRows(args);
  checkIds(args, r);
  Floats dy = floats(args, 1);
  float* out = args[2].as<float>();
  int64_t c = r.c, n = r.n;
  auto axpy = args.context.isa->axpy;
  if (Zeros) {
    args.context.ranges(r.v * c, 4 * Context::kGrain, [&](int64_t from, int64_t to, int) {
      std::fill(out + from, out + to, 0.0f);
    });
  }
  constexpr int64_t kBlock = 64;
  args.context.rows((c + kBlock - 1) / kBlock, kBlock * n, [&](int64_t from, int64_t to, int) {
    int64_t begin = from * kBlock, width = std::min(to * kBlock, c) - begin;
    for (int64_t i = 0; i < n; i++)
      axpy(1.0f, dy + i * c + begin, out + r.ids[i] * c + begin, width);
  });
}

}  // namespace

void registerEmbedding(Registry& r) {
  r.push_back({"embedding", embedding});
  r.push_back({"embedding.grad", embeddingGrad<true>});
  r.push_back({"embedding.gradAdd", embeddingGrad<false>});
}

}  // namespace lowrank
