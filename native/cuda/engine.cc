// The device as an engine, and the function the addon opens it by.
#include "../common/engine.h"

#include <cstdio>
#include <memory>

#include "blas.h"
#include "context.h"
#include "graph.h"
#include "reads.h"

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
    registerLoraRows(r);
    return r;
  }();
  return registry;
}

namespace {

constexpr int kLeastCapability = 80;

// 13020 as 13.2.
std::string versionText(int v) {
  return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10);
}

class CudaEngine : public Engine {
 public:
  explicit CudaEngine(int device) : graphs_(context_) {
    try {
      open(device);
    } catch (...) {
      close();
      throw;
    }
  }
  ~CudaEngine() override { close(); }

  const std::vector<const char*>& kernels() const override { return names_; }
  void run(size_t kernel, const View* tensors, size_t count, const double* attrs,
           size_t attrCount) override {
    enter();
    throwFault();
    const CudaKernel& k = cudaKernels()[kernel];
    CudaArgs args({k.name, tensors, count, attrs, attrCount}, context_, static_cast<int>(kernel));
    if (!graphs_.recording()) return k.run(args);
    graphs_.noteCall(kernel, tensors, count, attrs, attrCount);
    try {
      k.run(args);
    } catch (...) {
      graphs_.noteEnd();
      graphs_.spoil("a call that failed");
      throw;
    }
    graphs_.noteEnd();
  }
  Memory& memory() override {
    enter();
    return context_.memory;
  }
  void write(char* to, const void* from, size_t bytes) override {
    if (graphs_.recording()) {
      graphs_.write(to, from, bytes);
    } else {
      context_.memory.write(to, from, bytes);
    }
  }
  void read(void* to, const char* from, size_t bytes) override {
    graphs_.spoil("a copy to the host within the step");
    cudaCheck("read", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, context_.stream));
    cudaCheck("read", cudaStreamSynchronize(context_.stream));
    throwFault();
  }
  void writeFile(char* to, const std::string& path, uint64_t at, uint64_t bytes) override {
    enter();
    graphs_.spoil("a file that is read within the step");
    context_.memory.writeFile(to, path, at, bytes);
  }
  uint64_t readLater(const char* from, size_t bytes) override {
    enter();
    graphs_.spoil("a copy to the host within the step");
    return reads_.begin(from, bytes, context_.stream);
  }
  void takeRead(uint64_t read, void* to, size_t bytes) override {
    enter();
    reads_.take(read, to, bytes);
    throwFault();
  }
  void dropRead(uint64_t read) override {
    enter();
    reads_.drop(read);
  }

  void beginRecord() override {
    enter();
    graphs_.begin();
  }
  uint64_t endRecord(std::string& why) override { return graphs_.end(why); }
  void setInput(uint64_t graph, size_t input, const void* from, size_t bytes) override {
    enter();
    graphs_.setInput(graph, input, from, bytes);
  }
  bool replay(uint64_t graph, const std::vector<Shift>& shifts) override {
    enter();
    throwFault();
    return graphs_.replay(graph, shifts);
  }
  void dropRecord(uint64_t graph) override {
    enter();
    graphs_.drop(graph);
  }

  std::string device() const override { return context_.name; }
  std::vector<std::string> devices() const override { return {context_.name}; }
  void setDevice(const std::string& name) override {
    if (name != context_.name) fail("setIsa", context_.name, name);
  }
  bool brain() const override { return context_.brain; }
  void setBrain(bool on) override {
    if (on != context_.brain) graphs_.dropAll();  // they hold the other products
    context_.brain = on;
  }
  std::vector<std::pair<std::string, bool>> options() const override {
    return {{"tf32", context_.tf32}, {"batchInvariant", context_.batchInvariant}};
  }
  void setOption(const std::string& name, bool on) override {
    CudaContext& c = context_;
    bool tf32 = name == "tf32";
    if (!tf32 && name != "batchInvariant") fail("setOption", "tf32 or batchInvariant", name);
    bool& setting = tf32 ? c.tf32 : c.batchInvariant;
    if (on == setting) return;
    enter();
    if (on && tf32 && !blasThere(c)) {
      fail("tf32", "cuBLASLt, which alone multiplies in TF32", blasState(c));
    }
    if (on && (tf32 ? c.batchInvariant : c.tf32)) {
      fail(name.c_str(), "tf32 or batchInvariant",
           "both: batch-invariant products are the own kernels', in f32");
    }
    graphs_.dropAll();  // they hold the other products
    setting = on;
  }
  double fmaPeak() override { fail("fmaPeak", "the cpu backend", "cuda"); }
  std::vector<std::pair<std::string, std::string>> facts() const override {
    const CudaContext& c = context_;
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return {
        {"capability", std::to_string(c.capability / 10) + "." + std::to_string(c.capability % 10)},
        {"processors", std::to_string(c.multiprocessors)},
        {"memory", std::to_string(total)},
        {"free", std::to_string(free)},
        {"driver", versionText(driver)},
        {"runtime", versionText(runtime)},
        {"products", blasState(c)},
        {"tf32", c.tf32 ? "on" : "off"},
        {"batch-invariant", c.batchInvariant ? "on" : "off"}};
  }

 private:
  void open(int device) {
    CudaContext& c = context_;
    c.device = device;
    cudaCheck("backend cuda", cudaSetDevice(device));
    cudaDeviceProp properties = {};
    cudaCheck("backend cuda", cudaGetDeviceProperties(&properties, device));
    c.name = properties.name;
    c.multiprocessors = properties.multiProcessorCount;
    c.sharedPerBlock = properties.sharedMemPerBlockOptin;
    c.capability = properties.major * 10 + properties.minor;
    if (c.capability < kLeastCapability) {
      fail("backend cuda", "a GPU of compute capability 8.0 or more",
           c.name + " of " + std::to_string(properties.major) + "." +
               std::to_string(properties.minor) + ". Use --backend cpu");
    }
    cudaCheck("backend cuda", cudaStreamCreateWithFlags(&c.stream, cudaStreamNonBlocking));
    c.memory.bind(c.stream);
    c.memory.whenShort([this] { return graphs_.dropAll(); });
    void* fault = nullptr;
    cudaCheck("backend cuda", cudaHostAlloc(&fault, sizeof(Fault), cudaHostAllocMapped));
    c.fault = static_cast<Fault*>(fault);
    *c.fault = {};
    void* seen = nullptr;
    cudaCheck("backend cuda", cudaHostGetDevicePointer(&seen, fault, 0));
    c.faultOnDevice = static_cast<Fault*>(seen);
    for (const CudaKernel& k : cudaKernels()) names_.push_back(k.name);
  }

  void close() {
    CudaContext& c = context_;
    cudaSetDevice(c.device);
    if (c.stream) cudaStreamSynchronize(c.stream);
    graphs_.close();
    reads_.close();
    c.memory.close();
    if (c.fault) cudaFreeHost(c.fault);
    if (c.stream) cudaStreamDestroy(c.stream);
    c.fault = nullptr;
    c.stream = nullptr;
  }

  // Several environments, each on its own thread, may use several devices.
  void enter() { cudaCheck("backend cuda", cudaSetDevice(context_.device)); }

  void throwFault() {
    if (*const_cast<volatile int*>(&context_.fault->kernel) == 0) return;
    // Calls that are queued already may ask for it: an update must change nothing.
    cudaStreamSynchronize(context_.stream);
    Fault fault = *context_.fault;
    *context_.fault = {};
    const char* what = static_cast<FaultKind>(fault.kind) == FaultKind::id ? "ids" : "labels";
    fail(names_[static_cast<size_t>(fault.kernel - 1)],
         std::string(what) + " from 0 to " + std::to_string(fault.limit - 1),
         std::to_string(fault.value));
  }

  CudaContext context_;
  Graphs graphs_;
  Reads reads_;
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
  if (status == cudaErrorInsufficientDriver) {
    int runtime = 0;
    cudaRuntimeGetVersion(&runtime);
    return "[backend cuda] expected a driver for CUDA " + versionText(runtime) +
           ", received one for " + versionText(driver) +
           ". Update the driver, build with an older CUDA, or use --backend cpu";
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
