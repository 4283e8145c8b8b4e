#include "kernels.h"

namespace lowrank {

Floats floats(const Args& args, size_t i) {
  const View& v = args.floating(i);
  if (v.dtype == DType::f32) return Floats(v.as<float>());
  Workspace held(args.context.memory, static_cast<uint64_t>(v.count) * sizeof(float));
  float* to = held.as<float>();
  const uint16_t* from = v.as<uint16_t>();
  auto widen = v.dtype == DType::f16 ? args.context.isa->widenF16 : args.context.isa->widenBf16;
  args.context.ranges(v.count, Context::kGrain,
                      [&](int64_t b, int64_t e, int) { widen(from + b, to + b, e - b); });
  return Floats(std::move(held));
}

const Registry& cpuKernels() {
  static const Registry registry = [] {
    Registry r;
    registerElementwise(r);
    registerReduce(r);
    registerMatmul(r);
    registerSoftmax(r);
    registerLoss(r);
    registerNorm(r);
    registerRope(r);
    registerEmbedding(r);
    registerAttention(r);
    registerDropout(r);
    registerLayout(r);
    registerGather(r);
    registerCast(r);
    registerOptim(r);
    registerLora(r);
    registerLoraRows(r);
    return r;
  }();
  return registry;
}

}  // namespace lowrank
