#include "graph.h"

#include <algorithm>
#include <utility>

namespace lowrank {

namespace {

constexpr size_t kWrite = SIZE_MAX;  // in the place of a kernel's number

}  // namespace

struct Graphs::Recording {
  struct Step {
    size_t kernel;  // or kWrite: views[tensors] is the target, inputs[attrs] the source
    size_t tensors, count, attrs, attrCount;
  };
  struct Input {
    uint64_t handle;
    char* data;
    size_t bytes;
  };

  Memory::Pool* pool = nullptr;
  std::vector<Step> steps;
  std::vector<View> views;
  std::vector<double> attrs;
  std::vector<Input> inputs;
  std::vector<DeviceMemory::Scratch> scratch;
  std::vector<uint64_t> needed;  // handles of what it reads and writes outside its pool
  std::string spoilt;
  std::vector<Engine::Shift> shifts;  // of the graph that is instantiated
  cudaGraphExec_t exec = nullptr;
};

Graphs::Graphs(CudaContext& context) : context_(context) {}

Graphs::~Graphs() { close(); }

void Graphs::close() {
  if (open_) forget(*open_);
  open_ = nullptr;
  dropAll();
}

void Graphs::begin() {
  if (open_) fail("beginRecord", "endRecord() before", "a recording under way");
  open_ = std::make_unique<Recording>();
  open_->pool = context_.memory.openPool();
}

uint64_t Graphs::end(std::string& why) {
  if (!open_) fail("endRecord", "beginRecord() before", "none");
  std::unique_ptr<Recording> r = std::move(open_);
  context_.memory.note(nullptr);
  context_.memory.closePool();
  std::sort(r->needed.begin(), r->needed.end());
  r->needed.erase(std::unique(r->needed.begin(), r->needed.end()), r->needed.end());
  why = r->spoilt;
  if (why.empty()) {
    try {
      capture(*r, {});
      recordings_[++last_] = std::move(r);
      return last_;
    } catch (const std::exception& e) {
      why = e.what();
    }
  }
  forget(*r);
  return 0;
}

void Graphs::noteCall(size_t kernel, const View* tensors, size_t count, const double* attrs,
                      size_t attrCount) {
  Recording& r = *open_;
  r.steps.push_back({kernel, r.views.size(), count, r.attrs.size(), attrCount});
  r.views.insert(r.views.end(), tensors, tensors + count);
  r.attrs.insert(r.attrs.end(), attrs, attrs + attrCount);
  for (size_t i = 0; i < count; i++) {
    if (context_.memory.at(tensors[i].handle, "record").pool != r.pool) {
      r.needed.push_back(tensors[i].handle);
    }
  }
  context_.memory.note(&r.scratch);
}

void Graphs::write(char* to, const void* from, size_t bytes) {
  Recording& r = *open_;
  // Written before a replay begins: not in memory that the step itself uses earlier on.
  uint64_t handle = context_.memory.allocOutside(bytes, Purpose::workspace);
  char* data = context_.memory.at(handle, "write").data;
  View target;
  target.data = to;
  r.steps.push_back({kWrite, r.views.size(), 1, r.inputs.size(), 1});
  r.views.push_back(target);
  r.inputs.push_back({handle, data, bytes});
  context_.memory.write(data, from, bytes);
  cudaCheck("write", cudaMemcpyAsync(to, data, bytes, cudaMemcpyDeviceToDevice, context_.stream));
}

void Graphs::spoil(const std::string& what) {
  if (open_ && open_->spoilt.empty()) open_->spoilt = what;
}

Graphs::Recording* Graphs::find(uint64_t graph) {
  auto found = recordings_.find(graph);
  return found == recordings_.end() ? nullptr : found->second.get();
}

void Graphs::setInput(uint64_t graph, size_t input, const void* from, size_t bytes) {
  Recording* r = find(graph);
  if (!r) return;
  if (input >= r->inputs.size() || r->inputs[input].bytes != bytes) {
    fail("setInput", "an input of the recording, of its size",
         "number " + std::to_string(input) + " of " + std::to_string(bytes) + " bytes");
  }
  context_.memory.write(r->inputs[input].data, from, bytes);
}

void Graphs::launchAll(const Recording& r, const std::vector<Engine::Shift>& shifts) {
  std::vector<double> attrs;
  for (const Recording::Step& s : r.steps) {
    const View* views = r.views.data() + s.tensors;
    if (s.kernel == kWrite) {
      const Recording::Input& input = r.inputs[s.attrs];
      cudaCheck("write", cudaMemcpyAsync(views->data, input.data, input.bytes,
                                         cudaMemcpyDeviceToDevice, context_.stream));
      continue;
    }
    const double* first = r.attrs.data() + s.attrs;
    attrs.assign(first, first + s.attrCount);
    for (const Engine::Shift& shift : shifts) {
      if (shift.kernel == s.kernel && shift.attr < attrs.size()) attrs[shift.attr] += shift.by;
    }
    const CudaKernel& k = cudaKernels()[s.kernel];
    k.run(CudaArgs({k.name, views, s.count, attrs.data(), s.attrCount}, context_,
                   static_cast<int>(s.kernel)));
  }
}

// The launches again, into a graph: no work is done, and no memory is taken.
void Graphs::capture(Recording& r, const std::vector<Engine::Shift>& shifts) {
  cudaGraph_t graph = nullptr;
  cudaCheck("replay", cudaStreamBeginCapture(context_.stream, cudaStreamCaptureModeThreadLocal));
  context_.memory.repeat(&r.scratch);
  try {
    launchAll(r, shifts);
  } catch (...) {
    context_.memory.repeat(nullptr);
    if (cudaStreamEndCapture(context_.stream, &graph) == cudaSuccess) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  context_.memory.repeat(nullptr);
  cudaCheck("replay", cudaStreamEndCapture(context_.stream, &graph));
  cudaError_t status = cudaSuccess;
  if (r.exec) {
    cudaGraphExecUpdateResultInfo info = {};
    if (cudaGraphExecUpdate(r.exec, graph, &info) != cudaSuccess) {
      cudaGetLastError();  // other launches than before: a graph of its own
      cudaGraphExecDestroy(r.exec);
      r.exec = nullptr;
    }
  }
  if (!r.exec) status = cudaGraphInstantiate(&r.exec, graph, 0);
  cudaGraphDestroy(graph);
  cudaCheck("replay", status);
  r.shifts = shifts;
}

bool Graphs::replay(uint64_t graph, const std::vector<Engine::Shift>& shifts) {
  Recording* r = find(graph);
  if (!r) return false;
  for (uint64_t handle : r->needed) {
    if (context_.memory.alive(handle)) continue;
    drop(graph);
    return false;
  }
  std::vector<Engine::Shift> used;
  for (const Engine::Shift& shift : shifts) {
    auto calls = [&](const Recording::Step& s) { return s.kernel == shift.kernel; };
    if (shift.by != 0 && std::any_of(r->steps.begin(), r->steps.end(), calls)) {
      used.push_back(shift);
    }
  }
  if (used != r->shifts) capture(*r, used);
  cudaCheck("replay", cudaGraphLaunch(r->exec, context_.stream));
  return true;
}

void Graphs::forget(Recording& r) {
  if (r.exec) cudaGraphExecDestroy(r.exec);
  for (const Recording::Input& input : r.inputs) context_.memory.free(input.handle);
  if (r.pool) context_.memory.dropPool(r.pool);
  r.exec = nullptr;
  r.inputs.clear();
  r.pool = nullptr;
}

void Graphs::drop(uint64_t graph) {
  Recording* r = find(graph);
  if (!r) return;
  forget(*r);
  recordings_.erase(graph);
}

bool Graphs::dropAll() {
  bool some = !recordings_.empty();
  for (auto& entry : recordings_) forget(*entry.second);
  recordings_.clear();
  return some;
}

}  // namespace lowrank
