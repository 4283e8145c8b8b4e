// Optimizer steps, in place.
#include <cmath>

#include "map.cuh"

namespace lowrank {

namespace {

// Decoupled weight decay (Loshchilov and Hutter) in the order of PyTorch's AdamW.
struct AdamW {
  float decay, beta1, oneMinusBeta1, beta2, oneMinusBeta2, stepSize, rootCorrection, eps, gradScale;
  // g, p, m, v to p, m, v
  __device__ __forceinline__ void operator()(const float (&in)[4], float (&out)[3]) const {
    float g = in[0] * gradScale;
    float m = in[2] * beta1 + g * oneMinusBeta1;
    float v = in[3] * beta2 + g * g * oneMinusBeta2;
    out[0] = in[1] * decay - stepSize * m / (sqrtf(v) * rootCorrection + eps);
    out[1] = m;
    out[2] = v;
  }
};

struct Sgd {
  float lr, momentum, decay, gradScale;
  bool first;
  // g, p, m to p, m
  __device__ __forceinline__ void operator()(const float (&in)[3], float (&out)[2]) const {
    float d = in[0] * gradScale + decay * in[1];
    float moment = first ? d : momentum * in[2] + d;
    out[0] = in[1] - lr * moment;
    out[1] = moment;
  }
};

// Launchers.

// A gradient, then K - 1 tensors that are read and written.
template <int K, class F>
void step(const CudaArgs& args, F f) {
  Operands<K, K - 1> all;
  all.x[0] = anyFloats(args, 0);
  for (size_t i = 1; i < K; i++) {
    args.sameShape(0, i);
    all.y[i - 1] = args.out(i).as<float>();
    all.x[i] = {all.y[i - 1], DType::f32};
  }
  launchMap(args, all, args[0].count, f);
}

void adamw(const CudaArgs& args) {
  args.counts(4, 7);
  double lr = args.attrs[0], beta1 = args.attrs[1], beta2 = args.attrs[2], eps = args.attrs[3];
  double count = static_cast<double>(args.integer(5, 1, int64_t{1} << 53));
  AdamW s = {};
  s.decay = static_cast<float>(1 - lr * args.attrs[4]);
  s.beta1 = static_cast<float>(beta1);
  s.oneMinusBeta1 = static_cast<float>(1 - beta1);
  s.beta2 = static_cast<float>(beta2);
  s.oneMinusBeta2 = static_cast<float>(1 - beta2);
  s.stepSize = static_cast<float>(lr / (1 - std::pow(beta1, count)));
  s.rootCorrection = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, count)));
  s.eps = static_cast<float>(eps);
  s.gradScale = static_cast<float>(args.attrs[6]);
  step<4>(args, s);
}

void sgd(const CudaArgs& args) {
  args.counts(3, 5);
  Sgd s = {};
  s.lr = static_cast<float>(args.attrs[0]);
  s.momentum = static_cast<float>(args.attrs[1]);
  s.decay = static_cast<float>(args.attrs[2]);
  s.gradScale = static_cast<float>(args.attrs[3]);
  s.first = args.integer(4, 0, 1) != 0;
  step<3>(args, s);
}

}  // namespace

void registerOptim(CudaRegistry& r) {
  r.push_back({"adamw", adamw});
  r.push_back({"sgd", sgd});
}

}  // namespace lowrank
