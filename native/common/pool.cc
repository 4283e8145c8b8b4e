#include "pool.h"

namespace lowrank {

namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// About 20 to 60 microseconds of spinning before a thread sleeps.
constexpr int kSpins = 1200;

}  // namespace

Pool& Pool::shared() {
  // Never destroyed: other environments may still run while the process exits.
  static Pool* pool = new Pool();
  return *pool;
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(sleepMutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& t : workers_) t.join();
}

void Pool::grow(int workers) {
  while (static_cast<int>(workers_.size()) < workers) {
    int id = static_cast<int>(workers_.size()) + 1;
    try {
      workers_.emplace_back([this, id] { work(id); });
    } catch (const std::system_error&) {
      return;  // fewer threads are slower, not wrong
    }
  }
}

void Pool::note(size_t chunk) noexcept {
  std::lock_guard<std::mutex> lock(errorMutex_);
  if (!error_ || chunk < errorChunk_) {
    error_ = std::current_exception();
    errorChunk_ = chunk;
  }
}

void Pool::drain(int worker) {
  for (;;) {
    size_t chunk = next_.fetch_add(1, std::memory_order_relaxed);
    if (chunk >= chunks_) return;
    try {
      body_(context_, chunk, worker);
    } catch (...) {
      note(chunk);
    }
  }
}

void Pool::work(int id) {
  uint64_t seen = 0;
  while (!stop_) {
    int spins = 0;
    while (epoch_.load() == seen && spins < kSpins && !stop_) {
      pause();
      spins++;
    }
    if (epoch_.load() == seen) {
      std::unique_lock<std::mutex> lock(sleepMutex_);
      sleepers_++;
      wake_.wait(lock, [&] { return epoch_.load() != seen || stop_; });
      sleepers_--;
    }
    if (stop_) return;
    seen = epoch_.load();
    // A worker is counted before it looks whether the job is open, so that the caller cannot
    // leave between the look and the work.
    active_.fetch_add(1);
    if (open_.load() && id < limit_) drain(id);
    if (active_.fetch_sub(1) == 1 && callerSleeps_.load()) {
      std::lock_guard<std::mutex> lock(sleepMutex_);
      done_.notify_one();
    }
  }
}

void Pool::serial(size_t chunks, Body body, void* context) {
  for (size_t i = 0; i < chunks; i++) body(context, i, 0);
}

void Pool::run(size_t chunks, int threads, Body body, void* context) {
  if (chunks <= 1 || threads <= 1) return serial(chunks, body, context);
  std::unique_lock<std::mutex> job(busy_, std::try_to_lock);
  // Another environment is computing: the cores are taken, so this one goes alone.
  if (!job) return serial(chunks, body, context);
  grow(threads - 1);

  body_ = body;
  context_ = context;
  chunks_ = chunks;
  limit_ = threads;
  error_ = nullptr;
  next_.store(0);
  open_.store(true);
  epoch_.fetch_add(1);
  if (sleepers_.load() > 0) {
    std::lock_guard<std::mutex> lock(sleepMutex_);
    wake_.notify_all();
  }
  drain(0);
  open_.store(false);
  for (int spins = 0; active_.load() != 0 && spins < kSpins; spins++) pause();
  if (active_.load() != 0) {
    std::unique_lock<std::mutex> lock(sleepMutex_);
    callerSleeps_.store(true);
    done_.wait(lock, [&] { return active_.load() == 0; });
    callerSleeps_.store(false);
  }
  if (error_) {
    std::exception_ptr error = error_;
    error_ = nullptr;
    std::rethrow_exception(error);
  }
}

}  // namespace lowrank
