// Softmax and log-softmax over the last axis, and their gradients.
#include <cmath>

#include "kernels.h"

namespace lowrank {

namespace {

template <bool Log>
void forward(const Args& args) {
  args.counts(2, 0);
  args.alike(1, 1);
  Floats x = floats(args, 0);
  float* y = args.out(1).as<float>();
  const IsaTable& isa = *args.context.isa;
  int64_t n = args[0].last();
  if (args[0].count == 0) return;
  args.context.rows(args[0].rows(), n, [&](int64_t from, int64_t to, int) {
    for (int64_t r = from; r < to; r++) {
      const float* in = x + r * n;
      float* out = y + r * n;
      float top = isa.maxOf(in, n);
      if (Log) {
        double sum = isa.expSum(in, 1.0f, top, nullptr, n);
        // Two subtractions: top + log(sum) in one f32 would lose digits of small results.
        isa.affine(in, 1.0f, -top, out, n);
        isa.affine(out, 1.0f, -static_cast<float>(std::log(sum)), out, n);
      } else {
        double sum = isa.expSum(in, 1.0f, top, out, n);
        isa.affine(out, static_cast<float>(1.0 / sum), 0.0f, out, n);
      }
    }
  });
}

template <bool Log>
void backward(const Args& args) {
  args.counts(3, 0);
  args.alike(2, 1);
  Floats y = floats(args, 0), dy = floats(args, 1);
  float* dx = args.out(2).as<float>();
  const IsaTable& isa = *args.context.isa;
  int64_t n = args[0].last();
  if (args[0].count == 0) return;
  args.context.rows(args[0].rows(), n, [&](int64_t from, int64_t to, int) {
    for (int64_t r = from; r < to; r++) {
      int64_t at = r * n;
      if (Log) {
        isa.logSoftmaxGrad(y + at, dy + at, static_cast<float>(isa.sum(dy + at, n)), dx + at, n);
      } else {
        isa.softmaxGrad(y + at, dy + at, static_cast<float>(isa.dot(y + at, dy + at, n)), dx + at,
                        n);
      }
    }
  });
}

}  // namespace

void registerSoftmax(Registry& r) {
  r.push_back({"softmax", forward<false>});
  r.push_back({"logSoftmax", forward<true>});
  r.push_back({"softmax.grad", backward<false>});
  r.push_back({"logSoftmax.grad", backward<true>});
}

}  // namespace lowrank
