#include "engine.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "isa.h"
#include "kernels.h"
#include "peak.h"

namespace lowrank {

namespace {

constexpr int kMaxThreads = 256;
constexpr int kMaxIsas = 8;

class CpuEngine : public Engine {
 public:
  CpuEngine() {
    isaCount_ = supportedIsas(isas_, kMaxIsas);
    context_.isa = isas_[0];
    unsigned cores = std::thread::hardware_concurrency();
    context_.threads = cores == 0 ? 1 : static_cast<int>(std::min(cores, unsigned{kMaxThreads}));
    for (const Kernel& k : cpuKernels()) names_.push_back(k.name);
  }

  const std::vector<const char*>& kernels() const override { return names_; }
  void run(size_t kernel, const View* tensors, size_t count, const double* attrs,
           size_t attrCount) override {
    const Kernel& k = cpuKernels()[kernel];
    k.run(Args({k.name, tensors, count, attrs, attrCount}, context_));
  }
  Memory& memory() override { return context_.memory; }
  void write(char* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void read(void* to, const char* from, size_t bytes) override { std::memcpy(to, from, bytes); }

  std::string device() const override { return context_.isa->name; }
  std::vector<std::string> devices() const override {
    std::vector<std::string> names;
    for (int i = 0; i < isaCount_; i++) names.push_back(isas_[i]->name);
    return names;
  }
  void setDevice(const std::string& name) override {
    std::string known;
    for (int i = 0; i < isaCount_; i++) {
      if (name == isas_[i]->name) {
        context_.isa = isas_[i];
        return;
      }
      known += (i ? ", " : "") + std::string(isas_[i]->name);
    }
    fail("setIsa", "one of " + known, name);
  }
  int threads() const override { return context_.threads; }
  void setThreads(int count) override {
    if (count < 1 || count > kMaxThreads) {
      fail("setThreads", "a number of threads from 1 to 256", std::to_string(count));
    }
    context_.threads = count;
  }
  bool brain() const override { return context_.brain; }
  void setBrain(bool on) override { context_.brain = on; }
  double fmaPeak() override { return lowrank::fmaPeak(context_); }

 private:
  Context context_;
  const IsaTable* isas_[kMaxIsas];
  int isaCount_ = 0;
  std::vector<const char*> names_;
};

}  // namespace

std::unique_ptr<Engine> openCpu() { return std::make_unique<CpuEngine>(); }

}  // namespace lowrank
