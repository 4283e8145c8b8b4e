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

Activations::Activations(const Args& args, const View& view, bool read)
    : args_(args),
      view_(view),
      held_(
          view.dtype == DType::f32
              ? Workspace()
              : Workspace(args.context.memory, static_cast<uint64_t>(view.count) * sizeof(float))),
      data_(view.dtype == DType::f32 ? view.as<float>() : held_.as<float>()) {
  if (!read || view.dtype == DType::f32) return;
  args.context.ranges(view.count, Context::kGrain, [&](int64_t b, int64_t e, int) {
    args.context.isa->widenBf16(view.as<uint16_t>() + b, data_ + b, e - b);
  });
}

void Activations::settle() {
  if (view_.dtype == DType::f32) return;
  args_.context.ranges(view_.count, Context::kGrain, [&](int64_t b, int64_t e, int) {
    args_.context.isa->narrowBf16(data_ + b, view_.as<uint16_t>() + b, e - b);
  });
}

Lines::Lines(const Args& args, const View& view, int64_t width)
    : view_(view),
      width_(width),
      wide_(view.dtype == DType::f32),
      widen_(view.dtype == DType::f16 ? args.context.isa->widenF16 : args.context.isa->widenBf16),
      narrow_(args.context.isa->narrowBf16),
      held_(wide_
                ? Workspace()
                : Workspace(args.context.memory,
                            static_cast<uint64_t>(width * args.context.threads) * sizeof(float))) {}

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
