// The device as an engine, and the function the addon opens it by.
#include "../common/engine.h"

#include <cstdio>
#include <memory>

#include "context.h"

namespace lowrank {

void cudaCheck(const char* where, cudaError_t status) {
  if (status == cudaSuccess) return;
  std::string text = std::string("[") + where + "] expected CUDA to succeed, received " +
                     cudaGetErrorName(status) + ": " + cudaGetErrorString(status);
  if (status == cudaErrorMemoryAllocation) throw RangeError(text);
  throw Error(text);
}

const CudaRegistry& cudaKernels() {
  static const CudaRegistry registry = [] {
    CudaRegistry r;
    registerElementwise(r);
    registerReduce(r);
    registerSoftmax(r);
    registerNorm(r);
    registerRope(r);
    registerEmbedding(r);
    registerGather(r);
    registerDropout(r);
    registerLayout(r);
    registerCast(r);
    registerLoss(r);
    registerOptim(r);
    registerMatmul(r);
    registerAttention(r);
    registerLora(r);
    return r;
  }();
  return registry;
}

namespace {

class CudaEngine : public Engine {
 public:
  explicit CudaEngine(int device) {
    CudaContext& c = context_;
    c.device = device;
    cudaCheck("backend cuda", cudaSetDevice(device));
    cudaDeviceProp properties = {};
    cudaCheck("backend cuda", cudaGetDeviceProperties(&properties, device));
    c.name = properties.name;
    c.multiprocessors = properties.multiProcessorCount;
    c.sharedPerBlock = properties.sharedMemPerBlockOptin;
    c.capability = properties.major * 10 + properties.minor;
    cudaCheck("backend cuda", cudaStreamCreateWithFlags(&c.stream, cudaStreamNonBlocking));
    c.memory.bind(c.stream);
    void* fault = nullptr;
    cudaCheck("backend cuda", cudaHostAlloc(&fault, sizeof(Fault), cudaHostAllocMapped));
    c.fault = static_cast<Fault*>(fault);
    *c.fault = {};
    void* seen = nullptr;
    cudaCheck("backend cuda", cudaHostGetDevicePointer(&seen, fault, 0));
    c.faultOnDevice = static_cast<Fault*>(seen);
    for (const CudaKernel& k : cudaKernels()) names_.push_back(k.name);
  }
  ~CudaEngine() override {
    if (context_.stream) cudaStreamSynchronize(context_.stream);
    if (context_.fault) cudaFreeHost(context_.fault);
    context_.memory.close();
    if (context_.stream) cudaStreamDestroy(context_.stream);
  }

  const std::vector<const char*>& kernels() const override { return names_; }
  void run(size_t kernel, const View* tensors, size_t count, const double* attrs,
           size_t attrCount) override {
    enter();
    throwFault();
    const CudaKernel& k = cudaKernels()[kernel];
    k.run(CudaArgs({k.name, tensors, count, attrs, attrCount}, context_, static_cast<int>(kernel)));
  }
  Memory& memory() override {
    enter();
    return context_.memory;
  }
  void write(char* to, const void* from, size_t bytes) override {
    cudaCheck("write", cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, context_.stream));
    cudaCheck("write", cudaStreamSynchronize(context_.stream));
  }
  void read(void* to, const char* from, size_t bytes) override {
    cudaCheck("read", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, context_.stream));
    cudaCheck("read", cudaStreamSynchronize(context_.stream));
    throwFault();
  }

  std::string device() const override { return context_.name; }
  std::vector<std::string> devices() const override { return {context_.name}; }
  void setDevice(const std::string& name) override {
    if (name != context_.name) fail("setIsa", context_.name, name);
  }
  bool brain() const override { return context_.brain; }
  void setBrain(bool on) override { context_.brain = on; }
  double fmaPeak() override { fail("fmaPeak", "the cpu backend", "cuda"); }

 private:
  // Several environments, each on its own thread, may use several devices.
  void enter() { cudaCheck("backend cuda", cudaSetDevice(context_.device)); }

  void throwFault() {
    if (*const_cast<volatile int*>(&context_.fault->kernel) == 0) return;
    Fault fault = *context_.fault;
    *context_.fault = {};
    const char* what = static_cast<FaultKind>(fault.kind) == FaultKind::id ? "ids" : "labels";
    fail(names_[static_cast<size_t>(fault.kernel - 1)],
         std::string(what) + " from 0 to " + std::to_string(fault.limit - 1),
         std::to_string(fault.value));
  }

  CudaContext context_;
  std::vector<const char*> names_;
};

// What stands in the way of the device, with the way out; empty where nothing does.
std::string obstacle(int device) {
  int driver = 0, count = 0;
  cudaError_t status = cudaDriverGetVersion(&driver);
  if (status != cudaSuccess || driver == 0) {
    return "[backend cuda] expected an NVIDIA driver, received none. Install the driver of the "
           "card (nvidia-smi shows it), or use --backend cpu";
  }
  status = cudaGetDeviceCount(&count);
  auto version = [](int v) {
    return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10);
  };
  if (status == cudaErrorInsufficientDriver) {
    int runtime = 0;
    cudaRuntimeGetVersion(&runtime);
    return "[backend cuda] expected a driver for CUDA " + version(runtime) + ", received one for " +
           version(driver) + ". Update the driver, build with an older CUDA, or use --backend cpu";
  }
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
    return "[backend cuda] expected an NVIDIA GPU, received none (the driver is there). Check "
           "nvidia-smi and CUDA_VISIBLE_DEVICES, or use --backend cpu";
  }
  if (status != cudaSuccess) {
    return std::string("[backend cuda] expected CUDA to start, received ") +
           cudaGetErrorName(status) + ": " + cudaGetErrorString(status);
  }
  if (device >= count) {
    return "[backend cuda] expected a device from 0 to " + std::to_string(count - 1) +
           ", received " + std::to_string(device);
  }
  return "";
}

}  // namespace

}  // namespace lowrank

extern "C" __attribute__((visibility("default"))) lowrank::Engine* lowrankOpenEngine(
    int contract, int device, char* error, size_t capacity) {
  using namespace lowrank;
  auto say = [&](const std::string& text) {
    std::snprintf(error, capacity, "%s", text.c_str());
    return nullptr;
  };
  try {
    if (contract != kEngineContract) {
      return say(
          "[backend cuda] expected a library of the addon's build, received another one. "
          "Build again: npx lowrank build");
    }
    std::string why = obstacle(device);
    if (!why.empty()) return say(why);
    return new CudaEngine(device);
  } catch (const std::exception& e) {
    return say(e.what());
  }
}
