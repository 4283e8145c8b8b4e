// Moving data without changing it: permute, slice, concat, broadcast, copy, write, fill. Any dtype.
#include "../common/calls/layout.h"

#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace lowrank {

namespace {

template <class T>
void copyLine(char* to, int64_t toStep, const char* from, int64_t fromStep, int64_t n) {
  T* y = reinterpret_cast<T*>(to);
  const T* x = reinterpret_cast<const T*>(from);
  for (int64_t i = 0; i < n; i++) y[i * toStep] = x[i * fromStep];
}

void line(char* to, int64_t toStep, const char* from, int64_t fromStep, int64_t n, size_t size) {
  if (toStep == 1 && fromStep == 1) {
    std::memcpy(to, from, static_cast<size_t>(n) * size);
  } else if (size == 4) {
    copyLine<uint32_t>(to, toStep, from, fromStep, n);
  } else if (size == 2) {
    copyLine<uint16_t>(to, toStep, from, fromStep, n);
  } else if (size == 8) {
    copyLine<uint64_t>(to, toStep, from, fromStep, n);
  } else {
    copyLine<uint8_t>(to, toStep, from, fromStep, n);
  }
}

// Offsets of element `index` of all axes but `skipped` and the last, in the target and the source.
void offsetsOf(const AxisPairs& p, int64_t index, int skipped, int64_t* to, int64_t* from) {
  *to = *from = 0;
  for (int d = p.rank - 2; d >= 0; d--) {
    if (d == skipped) continue;
    *to += index % p.dims[d] * p.a[d];
    *from += index % p.dims[d] * p.b[d];
    index /= p.dims[d];
  }
}

// Copies words where the target runs along its last axis and the source along another: squares are
// turned. Says whether this is such a copy.
bool turned(Context& context, char* to, const char* from, const AxisPairs& p, size_t size) {
  constexpr int64_t kStrip = 64;
  int inner = p.rank - 1, other = -1;
  for (int d = 0; d < inner; d++) {
    if (p.b[d] == 1) other = d;
  }
  if (size != 4 || other < 0 || p.a[inner] != 1 || p.dims[inner] < 4 || p.dims[other] < 4)
    return false;
  int64_t strips = (p.dims[other] + kStrip - 1) / kStrip;
  int64_t rest = p.count / p.dims[inner] / p.dims[other];
  auto turn = context.isa->turnWords;
  context.rows(rest * strips, kStrip * p.dims[inner], [&](int64_t first, int64_t end, int) {
    for (int64_t i = first; i < end; i++) {
      int64_t j = i % strips * kStrip, atTo, atFrom;
      offsetsOf(p, i / strips, other, &atTo, &atFrom);
      turn(reinterpret_cast<const uint32_t*>(from) + atFrom + j, p.b[inner], p.dims[inner],
           std::min(kStrip, p.dims[other] - j),
           reinterpret_cast<uint32_t*>(to) + atTo + j * p.a[other], p.a[other]);
    }
  });
  return true;
}

void copyBlock(Context& context, const Block& b) {
  AxisPairs p = joined(b.dims, b.rank, b.toSteps, b.fromSteps);
  if (p.count == 0) return;
  char* to = b.to;
  const char* from = b.from;
  size_t size = b.size;
  if (p.rank == 0) {
    std::memcpy(to, from, size);
    return;
  }
  int inner = p.rank - 1;
  int64_t width = p.dims[inner], toStep = p.a[inner], fromStep = p.b[inner];
  int64_t bytes = static_cast<int64_t>(size), outer = p.count / width;
  if (outer == 1) {
    context.ranges(width, Context::kGrain, [&](int64_t i, int64_t e, int) {
      line(to + i * toStep * bytes, toStep, from + i * fromStep * bytes, fromStep, e - i, size);
    });
    return;
  }
  if (turned(context, to, from, p, size)) return;
  context.rows(outer, width, [&](int64_t first, int64_t end, int) {
    for (int64_t r = first; r < end; r++) {
      int64_t atTo, atFrom;
      offsetsOf(p, r, -1, &atTo, &atFrom);
      line(to + atTo * bytes, toStep, from + atFrom * bytes, fromStep, width, size);
    }
  });
}

void permute(const Args& args) { copyBlock(args.context, permuteBlock(args)); }

void slice(const Args& args) { copyBlock(args.context, sliceBlock(args)); }

void sliceGrad(const Args& args) {
  Block part = partBlock(args);
  const View& y = args[1];
  args.context.ranges(
      static_cast<int64_t>(y.bytes()), Context::kGrain * 4,
      [&](int64_t i, int64_t e, int) { std::memset(y.data + i, 0, static_cast<size_t>(e - i)); });
  copyBlock(args.context, part);
}

void write(const Args& args) { copyBlock(args.context, partBlock(args)); }

// y's part that begins at the attributes += x, line by line of the last axis.
constexpr int64_t kBlock = 1024;  // elements of bf16 that pass through f32 at a time
void sliceGradAdd(const Args& args) {
  Block part = partBlock(args, true);
  const View& x = args[0];
  View lines = args[1];  // of the part, wherever they begin
  lines.data = part.to;
  Floats dy = floats(args, 0);
  const float* from = dy;
  const IsaTable& isa = *args.context.isa;
  bool wide = lines.dtype == DType::f32;
  auto addLine = [&](int64_t at, const float* line, int64_t n) {
    float* to = lines.as<float>() + at;
    if (wide) return isa.binary[kAdd](to, 1, line, 1, to, n);
    float block[kBlock];
    for (int64_t j = 0; j < n; j += kBlock) {
      int64_t some = std::min(kBlock, n - j);
      uint16_t* bits = lines.as<uint16_t>() + at + j;
      isa.widenBf16(bits, block, some);
      isa.binary[kAdd](block, 1, line + j, 1, block, some);
      isa.narrowBf16(block, bits, some);
    }
  };
  args.context.rows(x.rows(), x.last(), [&](int64_t first, int64_t end, int) {
    for (int64_t r = first; r < end; r++) {
      int64_t rest = r, at = 0;
      for (int d = x.rank - 2; d >= 0; d--) {
        at += rest % x.dims[d] * part.toSteps[d];
        rest /= x.dims[d];
      }
      addLine(at, from + r * x.last(), x.last());
    }
  });
}

void concat(const Args& args) {
  concatBlocks(args, [&](const Block& b) { copyBlock(args.context, b); });
}

void broadcast(const Args& args) { copyBlock(args.context, broadcastBlock(args)); }

void copy(const Args& args) {
  checkCopy(args);
  const View &x = args[0], &y = args[1];
  args.context.ranges(static_cast<int64_t>(x.bytes()), Context::kGrain * 4,
                      [&](int64_t i, int64_t e, int) {
                        std::memmove(y.data + i, x.data + i, static_cast<size_t>(e - i));
                      });
}

void fill(const Args& args) {
  auto half = [&](DType dtype, float value) {
    const IsaTable& isa = *args.context.isa;
    uint16_t bits;
    (dtype == DType::f16 ? isa.narrowF16 : isa.narrowBf16)(&value, &bits, 1);
    return bits;
  };
  byFillValue(args, half, [&](auto value) {
    auto* y = args[0].as<decltype(value)>();
    args.context.ranges(args[0].count, Context::kGrain,
                        [&](int64_t i, int64_t e, int) { std::fill(y + i, y + e, value); });
  });
}

}  // namespace

void registerLayout(Registry& r) {
  r.push_back({"permute", permute});
  r.push_back({"slice", slice});
  r.push_back({"slice.grad", sliceGrad});
  r.push_back({"slice.gradAdd", sliceGradAdd});
  r.push_back({"concat", concat});
  r.push_back({"broadcast", broadcast});
  r.push_back({"fill", fill});
  r.push_back({"copy", copy});
  r.push_back({"write", write});
}

}  // namespace lowrank
