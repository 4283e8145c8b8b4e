// A backend as the addon sees it: memory behind handles and kernels by number. The methods throw
// the errors of error.h. A backend in a library of its own answers one through openEngine.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "call.h"
#include "error.h"
#include "memory.h"

namespace lowrank {

class Engine {
 public:
  virtual ~Engine() = default;

  // Names of the kernels; a kernel's number is its place.
  virtual const std::vector<const char*>& kernels() const = 0;
  virtual void run(size_t kernel, const View* tensors, size_t count, const double* attrs,
                   size_t attrCount) = 0;
  virtual Memory& memory() = 0;
  // Copies between the backend's memory and the host's; the host's may be reused when they return.
  virtual void write(char* to, const void* from, size_t bytes) = 0;
  virtual void read(void* to, const char* from, size_t bytes) = 0;
  // Bytes of a file from `at` on, copied from where it is mapped; for memory that is not the
  // host's.
  virtual void writeFile(char*, const std::string&, uint64_t, uint64_t) {
    fail("writeFile", "the cuda backend", "another");
  }
  // A copy to the host that nobody waits for yet: its number, until takeRead() or dropRead(). A
  // backend whose calls are done when they return has none.
  virtual uint64_t readLater(const char*, size_t) {
    fail("readLater", "the cuda backend", "another");
  }
  virtual void takeRead(uint64_t, void*, size_t) {}
  virtual void dropRead(uint64_t) {}

  // The instruction set or the card in use, and those there are.
  virtual std::string device() const = 0;
  virtual std::vector<std::string> devices() const = 0;
  virtual int threads() const { return 1; }
  virtual void setThreads(int) {}
  virtual void setDevice(const std::string& name) = 0;
  // Whether products with a bf16 factor round the other one to bf16, too.
  virtual bool brain() const = 0;
  virtual void setBrain(bool on) = 0;
  // How a GPU multiplies, by name; others have no such settings.
  virtual std::vector<std::pair<std::string, bool>> options() const { return {}; }
  virtual void setOption(const std::string& name, bool) {
    fail("setOption", "a setting of this backend", name);
  }
  // GFLOP/s of fused multiply-adds on registers.
  virtual double fmaPeak() = 0;
  // What there is to say about the device, by name.
  virtual std::vector<std::pair<std::string, std::string>> facts() const { return {}; }

  // From beginRecord() to endRecord() the calls of run() and write() are noted while they run, so
  // that replay() does them again, at the same addresses. endRecord answers the recording's number,
  // or 0 with the reason why it cannot be replayed.
  virtual void beginRecord() { fail("beginRecord", "the cuda backend", "another"); }
  virtual uint64_t endRecord(std::string&) { return 0; }
  // The bytes that the i-th write() of a recording copies from now on.
  virtual void setInput(uint64_t, size_t, const void*, size_t) {}
  // An attribute of every call of a kernel, moved from what was recorded.
  struct Shift {
    size_t kernel, attr;
    double by;
    bool operator==(const Shift& o) const {
      return kernel == o.kernel && attr == o.attr && by == o.by;
    }
  };
  // False, and nothing done, where the recording is gone: memory it reads or writes was freed, or
  // was needed for something else.
  virtual bool replay(uint64_t, const std::vector<Shift>&) { return false; }
  virtual void dropRecord(uint64_t) {}
};

// The function `lowrankOpenEngine` of a backend's library: an engine on a device by its number, or
// null with the reason in `error`, a text of at most `capacity` bytes with its end.
using OpenEngine = Engine* (*)(int contract, int device, char* error, size_t capacity);

// Raised with every change to what this header, memory.h, call.h and view.h lay out.
constexpr int kEngineContract = 6;

}  // namespace lowrank
