// Rows of a table by id, and the gradient of the table.
#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace lowrank {

namespace {

void checkIds(const Args& args, const int32_t* ids, int64_t n, int64_t vocabulary) {
  for (int64_t i = 0; i < n; i++) {
    EXPECT(args, ids[i] >= 0 && ids[i] < vocabulary,
           "ids from 0 to " + std::to_string(vocabulary - 1),
           std::to_string(ids[i]) + " at " + std::to_string(i));
  }
}

// `rows` is shaped as ids with C behind.
void checkRows(const Args& args, size_t ids, size_t rows, int64_t c) {
  View want = args[ids];
  EXPECT(args, want.rank < kMaxRank, "ids of fewer axes", want.describe());
  want.dtype = args[rows].dtype;
  want.dims[want.rank++] = c;
  EXPECT(args, want.sameShape(args[rows]),
         "tensor " + std::to_string(rows) + " as " + want.describe(), args[rows].describe());
}

void embedding(const Args& args) {
  args.counts(3, 0);
  const View& table = args[0];
  EXPECT(args, isFloat(table.dtype) && table.rank == 2, "a table [V, C] of f32, f16 or bf16",
         table.describe());
  int64_t v = table.dims[0], c = table.dims[1], n = args[1].count;
  const int32_t* ids = args.typed(1, DType::i32).as<int32_t>();
  checkIds(args, ids, n, v);
  checkRows(args, 1, 2, c);
  float* y = args.out(2).as<float>();
  const IsaTable& isa = *args.context.isa;
  args.context.rows(n, c, [&](int64_t from, int64_t to, int) {
    for (int64_t i = from; i < to; i++) {
      int64_t at = ids[i] * c;
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
  args.counts(3, 0);
  const View& table = args[2];
  EXPECT(args, table.rank == 2, "a table gradient [V, C]", table.describe());
  int64_t v = table.dims[0], c = table.dims[1], n = args[0].count;
  const int32_t* ids = args.typed(0, DType::i32).as<int32_t>();
  checkIds(args, ids, n, v);
  checkRows(args, 0, 1, c);
  Floats dy = floats(args, 1);
  float* out = args.out(2).as<float>();
  auto axpy = args.context.isa->axpy;
  if (Zeros) {
    args.context.ranges(v * c, 4 * Context::kGrain, [&](int64_t from, int64_t to, int) {
      std::fill(out + from, out + to, 0.0f);
    });
  }
  constexpr int64_t kBlock = 64;
  args.context.rows((c + kBlock - 1) / kBlock, kBlock * n, [&](int64_t from, int64_t to, int) {
    int64_t begin = from * kBlock, width = std::min(to * kBlock, c) - begin;
    for (int64_t i = 0; i < n; i++) axpy(1.0f, dy + i * c + begin, out + ids[i] * c + begin, width);
  });
}

}  // namespace

void registerEmbedding(Registry& r) {
  r.push_back({"embedding", embedding});
  r.push_back({"embedding.grad", embeddingGrad<true>});
  r.push_back({"embedding.gradAdd", embeddingGrad<false>});
}

}  // namespace lowrank
