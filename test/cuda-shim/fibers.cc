// The threads of a block as fibers, one running at a time.
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda_shim.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Keeps what a call must keep on the stack, and goes on with another stack: swapcontext without its
// two calls of the system.
extern "C" __attribute__((visibility("hidden"))) void shimSwitch(void** from, void* to);
asm(R"(
  .text
  .globl shimSwitch
  .hidden shimSwitch
  .type shimSwitch, @function
shimSwitch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size shimSwitch, .-shimSwitch
)");
#endif

namespace shim {

const Place* here = nullptr;

namespace {

constexpr size_t kStack = 128 << 10;

#if defined(__x86_64__)
struct Context {
  void* stack = nullptr;

  void begin(char* memory, size_t bytes, void (*entry)()) {
    auto top = reinterpret_cast<uintptr_t>(memory + bytes) & ~uintptr_t{15};
    auto* frame = reinterpret_cast<void**>(top) - 8;
    for (int i = 0; i < 8; i++) frame[i] = nullptr;  // registers, and where entry would return to
    frame[6] = reinterpret_cast<void*>(entry);
    stack = frame;
  }
  void goTo(Context& other) { shimSwitch(&stack, other.stack); }
};
#else
struct Context {
  ucontext_t context;

  void begin(char* memory, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = memory;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void goTo(Context& other) { swapcontext(&context, &other.context); }
};
#endif

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Place place;
  bool done = false;
  // What it waits for: a count of meetings of its block or its warp.
  const uint64_t* meeting = nullptr;
  uint64_t after = 0;
  std::exception_ptr error;
};

struct Warp {
  uint64_t meetings = 0;
  unsigned arrived = 0;
  alignas(16) char values[2][32 * 16];
  uint64_t turn[32] = {};  // exchanges of each lane; their parity picks the array
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Warp> warps;
size_t count = 0, current = 0, live = 0;
uint64_t meetings = 0;
size_t arrived = 0;
int flags = 0, flagsSeen = 0;
Context scheduler;
const std::function<void()>* body = nullptr;
std::unordered_map<const void*, std::unique_ptr<char[]>> sharedBySite;
std::unique_ptr<char[]> dynamicBlock;

#if defined(__SANITIZE_ADDRESS__)
const void* mainStack = nullptr;
size_t mainStackSize = 0;
void startSwitch(void** save, const void* bottom, size_t size) {
  __sanitizer_start_switch_fiber(save, bottom, size);
}
void finishSwitch(void* save, bool toMain) {
  __sanitizer_finish_switch_fiber(save, toMain ? nullptr : &mainStack,
                                  toMain ? nullptr : &mainStackSize);
}
#else
void startSwitch(void**, const void*, size_t) {}
void finishSwitch(void*, bool) {}
const void* mainStack = nullptr;
size_t mainStackSize = 0;
#endif

void yield(bool last) {
  Fiber& f = *fibers[current];
  void* save = nullptr;
  startSwitch(last ? nullptr : &save, mainStack, mainStackSize);
  f.context.goTo(scheduler);
  finishSwitch(save, false);
}

void enter() {
  finishSwitch(nullptr, false);
  Fiber& f = *fibers[current];
  try {
    (*body)();
  } catch (...) {
    f.error = std::current_exception();
  }
  f.done = true;
  live--;
  // A thread that returns no longer counts at the block's barrier.
  if (live > 0 && arrived == live) {
    arrived = 0;
    flagsSeen = flags;
    flags = 0;
    meetings++;
  }
  yield(true);
}

void resume(size_t i) {
  current = i;
  Fiber& f = *fibers[i];
  here = &f.place;
  void* save = nullptr;
  startSwitch(&save, f.stack.get(), kStack);
  scheduler.goTo(f.context);
  finishSwitch(save, true);
}

void wait(const uint64_t& of) {
  Fiber& f = *fibers[current];
  f.meeting = &of;
  f.after = of;
  yield(false);
}

std::vector<size_t> orderOf(size_t n, unsigned block) {
  std::vector<size_t> order(n);
  for (size_t i = 0; i < n; i++) order[i] = i;
  const char* name = std::getenv("LOWRANK_SHIM_ORDER");
  std::string how = name ? name : "forward";
  if (how == "reverse") {
    std::reverse(order.begin(), order.end());
  } else if (how == "shuffled") {
    std::mt19937 random(block + 1);
    std::shuffle(order.begin(), order.end(), random);
  }
  return order;
}

void runBlock(uint3 at, dim3 grid, dim3 block, size_t sharedBytes) {
  count = static_cast<size_t>(block.x) * block.y * block.z;
  while (fibers.size() < count) fibers.push_back(std::make_unique<Fiber>());
  warps.assign((count + 31) / 32, Warp());
  live = count;
  arrived = 0;
  flags = 0;
  sharedBySite.clear();
  dynamicBlock.reset(new char[sharedBytes + 16]);
  std::memset(dynamicBlock.get(), 0xff, sharedBytes + 16);
  for (size_t i = 0; i < count; i++) {
    Fiber& f = *fibers[i];
    unsigned rank = static_cast<unsigned>(i);
    f.place = {{rank % block.x, rank / block.x % block.y, rank / block.x / block.y},
               at,
               block,
               grid,
               static_cast<int>(i)};
    f.done = false;
    f.meeting = nullptr;
    f.error = nullptr;
    f.context.begin(f.stack.get(), kStack, enter);
  }
  std::vector<size_t> order = orderOf(count, at.x + at.y * 31 + at.z * 977);
  while (live > 0) {
    bool moved = false;
    for (size_t i : order) {
      Fiber& f = *fibers[i];
      if (f.done || (f.meeting && *f.meeting == f.after)) continue;
      f.meeting = nullptr;
      resume(i);
      moved = true;
    }
    if (!moved)
      throw std::runtime_error(
          "[shim] expected the threads of a block to meet, received some that wait for ever");
  }
  for (size_t i = 0; i < count; i++) {
    if (fibers[i]->error) std::rethrow_exception(fibers[i]->error);
  }
}

}  // namespace

void launch(dim3 grid, dim3 block, size_t sharedBytes, const std::function<void()>& f) {
  body = &f;
  for (unsigned z = 0; z < grid.z; z++) {
    for (unsigned y = 0; y < grid.y; y++) {
      for (unsigned x = 0; x < grid.x; x++) runBlock({x, y, z}, grid, block, sharedBytes);
    }
  }
  here = nullptr;
}

void barrier() { barrierCount(0); }

int barrierCount(int flag) {
  flags += flag;
  arrived++;
  if (arrived == live) {
    arrived = 0;
    flagsSeen = flags;
    flags = 0;
    meetings++;
    // Not the last one's turn: whoever comes first in the order goes on first.
    fibers[current]->meeting = nullptr;
    yield(false);
  } else {
    wait(meetings);
  }
  return flagsSeen;
}

const char* exchange(unsigned mask, const void* value, size_t bytes) {
  size_t warp = static_cast<size_t>(here->rank) / 32;
  int lane = laneOf();
  Warp& w = warps[warp];
  char* values = w.values[w.turn[lane]++ % 2];
  std::memcpy(values + lane * 16, value, bytes);
  w.arrived |= 1u << lane;
  unsigned present = count - warp * 32 >= 32 ? 0xffffffffu : (1u << (count - warp * 32)) - 1;
  if (w.arrived == (mask & present)) {
    w.arrived = 0;
    w.meetings++;
    yield(false);
  } else {
    wait(w.meetings);
  }
  return values;
}

void* shared(const void* site, size_t bytes) {
  std::unique_ptr<char[]>& memory = sharedBySite[site];
  if (!memory) {
    memory.reset(new char[bytes + 16]);
    std::memset(memory.get(), 0xff, bytes + 16);
  }
  return memory.get();
}

void* dynamicShared() { return dynamicBlock.get(); }

}  // namespace shim
