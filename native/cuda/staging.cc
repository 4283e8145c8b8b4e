#include "staging.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "context.h"

namespace lowrank {

namespace {

constexpr size_t kHalf = size_t{4} << 20;
constexpr size_t kAlign = 256;

}  // namespace

bool Staging::open() {
  if (ready_) return true;
  for (int i = 0; i < 2; i++) {
    void* data = nullptr;
    if (cudaMallocHost(&data, kHalf) != cudaSuccess ||
        cudaEventCreateWithFlags(&left_[i], cudaEventDisableTiming) != cudaSuccess) {
      if (data) cudaFreeHost(data);
      cudaGetLastError();  // taken note of: later calls do not report it again
      close();
      return false;
    }
    half_[i] = static_cast<char*>(data);
  }
  return ready_ = true;
}

void Staging::close() {
  for (int i = 0; i < 2; i++) {
    if (left_[i]) {
      cudaEventSynchronize(left_[i]);
      cudaEventDestroy(left_[i]);
    }
    if (half_[i]) cudaFreeHost(half_[i]);
    left_[i] = nullptr;
    half_[i] = nullptr;
  }
  ready_ = false;
  used_ = 0;
}

// Room for `bytes` of at most a half.
char* Staging::place(size_t bytes, cudaStream_t stream) {
  if (used_ + bytes > kHalf) {
    cudaCheck("write", cudaEventRecord(left_[at_], stream));
    at_ ^= 1;
    used_ = 0;
    cudaCheck("write", cudaEventSynchronize(left_[at_]));
  }
  char* data = half_[at_] + used_;
  used_ += (bytes + kAlign - 1) / kAlign * kAlign;
  return data;
}

void Staging::write(char* to, const void* from, size_t bytes, cudaStream_t stream) {
  if (!open()) {
    cudaCheck("write", cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream));
    cudaCheck("write", cudaStreamSynchronize(stream));
    return;
  }
  const char* source = static_cast<const char*>(from);
  for (size_t done = 0; done < bytes;) {
    size_t n = std::min(bytes - done, kHalf);
    char* pinned = place(n, stream);
    std::memcpy(pinned, source + done, n);
    cudaCheck("write", cudaMemcpyAsync(to + done, pinned, n, cudaMemcpyHostToDevice, stream));
    done += n;
  }
}

}  // namespace lowrank
