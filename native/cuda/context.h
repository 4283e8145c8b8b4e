// The state of one CUDA device, and what its kernels are called with.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <vector>

#include "../common/call.h"
#include "memory.h"

namespace lowrank {

// Throws "[where] …" with CUDA's name and text for an error; `ok` passes.
void cudaCheck(const char* where, cudaError_t status);

// A fault that only the device sees, in host memory that both reach. The first one stays until the
// host takes it, at the next call or copy back, and throws it.
struct Fault {
  int claimed;    // 1 once a thread is writing
  int kernel;     // number of the kernel + 1, written last; 0: none
  int kind;       // a FaultKind
  int64_t value;  // what was found
  int64_t limit;  // ids lie in [0, limit)
};

enum class FaultKind : int { id = 0, label = 1 };

// Where a kernel writes a fault.
struct FaultSink {
  Fault* fault;
  int kernel;
};

class Blas;

struct CudaContext {
  int device = 0;
  std::string name;  // of the card
  int multiprocessors = 1;
  size_t sharedPerBlock = 48 * 1024;  // most dynamic shared memory of a block, in bytes
  int capability = 0;                 // 80, 90, …
  cudaStream_t stream = nullptr;
  DeviceMemory memory;
  Fault* fault = nullptr;  // the host's address; pinned
  Fault* faultOnDevice = nullptr;
  bool brain = false;  // products with a bf16 factor round the other one to bf16, too
  bool tf32 = false;   // products of f32 may round their factors to TF32
  // A row's bits depend on nothing but the row: the way of a product follows from k, n and the
  // dtypes, attention's from the heads.
  bool batchInvariant = false;
  std::shared_ptr<Blas> blas;  // of blas.h; opened at the first product
};

struct CudaArgs : Call {
  CudaContext& device;
  int number;  // the kernel's
  CudaArgs(const Call& call, CudaContext& device, int number)
      : Call(call), device(device), number(number) {}
  FaultSink sink() const { return {device.faultOnDevice, number}; }
};

struct CudaKernel {
  const char* name;
  void (*run)(const CudaArgs& args);
};
using CudaRegistry = std::vector<CudaKernel>;

void registerElementwise(CudaRegistry& registry);
void registerReduce(CudaRegistry& registry);
void registerSoftmax(CudaRegistry& registry);
void registerNorm(CudaRegistry& registry);
void registerRope(CudaRegistry& registry);
void registerEmbedding(CudaRegistry& registry);
void registerGather(CudaRegistry& registry);
void registerDropout(CudaRegistry& registry);
void registerLayout(CudaRegistry& registry);
void registerCast(CudaRegistry& registry);
void registerLoss(CudaRegistry& registry);
void registerOptim(CudaRegistry& registry);
void registerMatmul(CudaRegistry& registry);
void registerAttention(CudaRegistry& registry);
void registerLora(CudaRegistry& registry);
void registerLoraRows(CudaRegistry& registry);

// Every kernel of this backend; a kernel's number is its place.
const CudaRegistry& cudaKernels();

}  // namespace lowrank
