// Calls recorded while they run, and replayed as one CUDA graph.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../common/engine.h"
#include "context.h"

namespace lowrank {

class Graphs {
 public:
  explicit Graphs(CudaContext& context);
  Graphs(const Graphs&) = delete;
  Graphs& operator=(const Graphs&) = delete;
  ~Graphs();

  bool recording() const { return open_ != nullptr; }
  void begin();
  // The recording's number, or 0 with the reason why it cannot be replayed.
  uint64_t end(std::string& why);
  // Before a call runs, and after it.
  void noteCall(size_t kernel, const View* tensors, size_t count, const double* attrs,
                size_t attrCount);
  void noteEnd() { context_.memory.note(nullptr); }
  // A copy from the host, made through memory of the recording's own.
  void write(char* to, const void* from, size_t bytes);
  // Something that no graph can do again.
  void spoil(const std::string& what);

  void setInput(uint64_t graph, size_t input, const void* from, size_t bytes);
  bool replay(uint64_t graph, const std::vector<Engine::Shift>& shifts);
  void drop(uint64_t graph);
  // Answers whether there was one; the recording under way, if any, stays.
  bool dropAll();
  void close();

 private:
  struct Recording;

  Recording* find(uint64_t graph);
  void capture(Recording& r, const std::vector<Engine::Shift>& shifts);
  void launchAll(const Recording& r, const std::vector<Engine::Shift>& shifts);
  void forget(Recording& r);

  CudaContext& context_;
  std::map<uint64_t, std::unique_ptr<Recording>> recordings_;
  std::unique_ptr<Recording> open_;
  uint64_t last_ = 0;
};

}  // namespace lowrank
