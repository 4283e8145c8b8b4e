// The thread pool and some kernels from several threads at once, to be built with
// -fsanitize=thread by scripts/test-tsan.mjs. Every result must have the bits that one thread gives.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "../../native/common/registry.h"
#include "../../native/cpu/isa.h"
#include "../../native/cpu/kernels.h"

namespace {

using namespace lowrank;

std::atomic<int> failures{0};

void report(const std::string& what) {
  std::printf("FAIL %s\n", what.c_str());
  failures++;
}

// What one kernel call gets: tensors of f32 but where said otherwise, filled from a fixed sequence.
struct Tensor {
  std::vector<int64_t> dims;
  DType dtype = DType::f32;
};
struct Call {
  const char* kernel;
  std::vector<Tensor> inputs, outputs;  // outputs start filled as well: some are read
  std::vector<double> attrs;
};

const std::vector<Call>& calls() {
  constexpr DType bf16 = DType::bf16, i32 = DType::i32;
  static const std::vector<Call> all = {
      {"matmul", {{{150, 140}}, {{140, 170}}}, {{{150, 170}}}, {0, 0, 1, 0}},
      {"matmul", {{{140, 150}}, {{170, 140}, bf16}}, {{{150, 170}}}, {1, 1, 0.5, 1}},
      {"matmul", {{{4, 40, 32}}, {{4, 32, 48}}}, {{{4, 40, 48}}}, {0, 0, 1, 0}},
      {"matmul", {{{700, 8}}, {{700, 300}}}, {{{8, 300}}}, {1, 0, 1, 0}},
      {"linear", {{{2, 256}}, {{600, 256}}, {{600}}}, {{{2, 600}}}, {}},
      {"linear", {{{300, 256}}, {{8, 256}}}, {{{300, 8}}}, {}},
      {"addLowRankRows",
       {{{3, 20, 96}}, {{3, 20, 128}}, {{8, 128}}, {{96, 8}}},
       {{{3, 20, 96}}},
       {2, 0, -1, 0}},
      {"addLowRankRows.grad",
       {{{3, 20, 96}}, {{3, 20, 128}}, {{3, 20, 8}}, {{8, 128}}, {{96, 8}}},
       {{{3, 20, 128}}, {{8, 128}}, {{96, 8}}},
       {1, 2, 1, 2, 1, 0, -1, 0}},
      {"mergeLowRank",
       {{{128, 160}, bf16}, {{8, 160}}, {{128, 8}}},
       {{{128, 160}, bf16}, {{1}, i32}},
       {0, 2}},
      {"attention",
       {{{2, 130, 4, 16}}, {{2, 130, 2, 16}}, {{2, 130, 2, 16}}},
       {{{2, 130, 4, 16}}, {{2, 4, 130}}},
       {0, 1, 0.25, 0, -1}},
      {"attention.grad",
       {{{2, 130, 4, 16}},
        {{2, 130, 2, 16}},
        {{2, 130, 2, 16}},
        {{2, 130, 4, 16}},
        {{2, 4, 130}},
        {{2, 130, 4, 16}}},
       {{{2, 130, 4, 16}}, {{2, 130, 2, 16}}, {{2, 130, 2, 16}}},
       {0, 1, 0.25, 0, -1}},
      {"crossEntropy", {{{90, 500}}, {{90}, i32}}, {{{90}}}, {-100, 0}},
      {"crossEntropy.withGrad", {{{90}, i32}}, {{{90}}, {{90, 500}}}, {-100, 0.1, 0.5}},
      {"sumSquares", {{{40000}}, {{3}}, {{70, 500}}}, {{{3}}}, {}},
      {"layerNorm", {{{200, 192}}, {{192}}, {{192}}}, {{{200, 192}}}, {1e-5}},
      {"rmsNorm.gradWeight", {{{200, 192}}, {{200, 192}}}, {{{192}}}, {1e-5}},
      {"sum", {{{200, 192}}}, {{{192}}}, {0}},
      {"dropout", {{{200, 192}}}, {{{200, 192}}}, {0.1, 1, 2, 3}},
      {"adamw", {{{40000}}}, {{{40000}}, {{40000}}, {{40000}}}, {1e-3, 0.9, 0.999, 1e-8, 0.01, 3, 1}},
  };
  return all;
}

int64_t countOf(const Tensor& t) {
  int64_t n = 1;
  for (int64_t d : t.dims) n *= d;
  return n;
}

// Values from 0.01 to 1, and labels of 0 to 6, by a linear congruential sequence.
void fillWith(char* to, const Tensor& t, uint32_t seed) {
  for (int64_t i = 0; i < countOf(t); i++) {
    seed = seed * 1664525u + 1013904223u;
    float value = 0.01f + static_cast<float>(seed >> 8) / 16777216.0f * 0.99f;
    if (t.dtype == DType::i32) {
      reinterpret_cast<int32_t*>(to)[i] = static_cast<int32_t>(seed >> 8) % 7;
    } else if (t.dtype == DType::bf16) {
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      reinterpret_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(bits >> 16);
    } else {
      reinterpret_cast<float*>(to)[i] = value;
    }
  }
}

// Runs one call and answers the bytes of its outputs.
std::string outputsOf(Context& context, const Call& call) {
  std::vector<View> views;
  std::vector<uint64_t> handles;
  std::string bytes;
  for (const auto* group : {&call.inputs, &call.outputs}) {
    for (const Tensor& t : *group) {
      View v;
      v.dtype = t.dtype;
      v.rank = static_cast<int>(t.dims.size());
      for (int i = 0; i < v.rank; i++) v.dims[i] = t.dims[static_cast<size_t>(i)];
      v.count = countOf(t);
      handles.push_back(context.memory.alloc(v.bytes(), Purpose::activation));
      v.data = context.memory.at(handles.back(), "test").data;
      fillWith(v.data, t, static_cast<uint32_t>(handles.size()));
      views.push_back(v);
    }
  }
  bool found = false;
  for (const Kernel& k : cpuKernels()) {
    if (std::strcmp(k.name, call.kernel) != 0) continue;
    k.run(Args({k.name, views.data(), views.size(), call.attrs.data(), call.attrs.size()}, context));
    found = true;
  }
  if (!found) throw Error(std::string("no kernel ") + call.kernel);
  for (size_t i = call.inputs.size(); i < views.size(); i++) {
    bytes.append(views[i].data, views[i].bytes());
  }
  for (uint64_t handle : handles) context.memory.free(handle);
  return bytes;
}

// Each chunk runs once, on a worker below the limit, whoever else is computing.
void checkChunks(int threads, size_t chunks) {
  struct Job {
    std::vector<int> runs;  // not atomic: the pool must order these for the caller
    int threads;
    std::atomic<bool> outside{false};
  } job{std::vector<int>(chunks, 0), threads, {}};
  Pool::shared().run(
      chunks, threads,
      [](void* context, size_t chunk, int worker) {
        Job& j = *static_cast<Job*>(context);
        j.runs[chunk]++;
        if (worker < 0 || worker >= j.threads) j.outside = true;
      },
      &job);
  if (job.outside) report("a worker beyond the limit");
  for (int runs : job.runs) {
    if (runs != 1) report("a chunk ran " + std::to_string(runs) + " times");
  }
}

// The first exception by chunk reaches the caller, and the pool works on.
void checkErrors(int threads) {
  try {
    Pool::shared().run(
        50, threads,
        [](void*, size_t chunk, int) {
          if (chunk % 7 == 3) throw RangeError(std::to_string(chunk));
        },
        nullptr);
    report("an exception was lost");
  } catch (const RangeError& e) {
    if (std::string(e.what()) != "3") report(std::string("expected chunk 3's error, got ") + e.what());
  }
}

// f(number) on `callers` threads at once.
template <class F>
void together(int callers, F f) {
  std::vector<std::thread> all;
  for (int i = 0; i < callers; i++) {
    all.emplace_back([&f, i] {
      try {
        f(i);
      } catch (const std::exception& e) {
        report(e.what());
      }
    });
  }
  for (std::thread& t : all) t.join();
}

void checkPool() {
  for (int callers : {1, 3}) {
    together(callers, [](int caller) {
      for (int round = 0; round < 60; round++) {
        int threads = 1 + (round + caller) % 5;
        checkChunks(threads, static_cast<size_t>(round));
        checkErrors(threads);
        // Now and then the workers are given time to fall asleep.
        if (round % 10 == 9) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    });
  }
}

void checkKernels(const IsaTable& isa, bool brain) {
  std::vector<std::string> expected;
  Context alone;
  alone.isa = &isa;
  alone.brain = brain;
  for (const Call& call : calls()) expected.push_back(outputsOf(alone, call));
  for (int callers : {1, 3}) {
    together(callers, [&](int caller) {
      Context context;
      context.isa = &isa;
      context.brain = brain;
      for (int threads : {2, 3, 4}) {
        context.threads = threads + (callers > 1 ? caller % 2 : 0);
        for (size_t i = 0; i < calls().size(); i++) {
          size_t at = (i + static_cast<size_t>(caller) * 5) % calls().size();
          if (outputsOf(context, calls()[at]) == expected[at]) continue;
          report(std::string(calls()[at].kernel) + " on " + isa.name + ", " +
                 std::to_string(context.threads) + " threads, " + std::to_string(callers) +
                 " callers: other bits than one thread's");
        }
      }
    });
  }
}

}  // namespace

int main() {
  const IsaTable* isas[8];
  int count = supportedIsas(isas, 8);
  checkPool();
  std::printf("pool: done\n");
  for (int i = 0; i < count; i++) {
    for (bool brain : {false, true}) checkKernels(*isas[i], brain);
    std::printf("%s: %zu kernel calls, by 1 and 3 callers: done\n", isas[i]->name, calls().size());
  }
  std::printf("%d failed\n", failures.load());
  return failures == 0 ? 0 : 1;
}
