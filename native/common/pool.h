// A fork-join thread pool: workers spin briefly, then sleep; chunks are taken from one counter.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace lowrank {

class Pool {
 public:
  using Body = void (*)(void* context, size_t chunk, int worker);

  // The one pool of the process; it outlives every environment.
  static Pool& shared();

  // Calls body for every chunk on at most `threads` threads, the caller being worker 0. The first
  // exception (by chunk) is thrown again here. Which thread takes a chunk is not determined.
  void run(size_t chunks, int threads, Body body, void* context);

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool();

 private:
  Pool() = default;
  void grow(int workers);
  void work(int id);
  void drain(int worker);
  void note(size_t chunk) noexcept;
  void serial(size_t chunks, Body body, void* context);

  std::mutex busy_;  // held by the caller for the length of one job
  std::vector<std::thread> workers_;

  std::mutex sleepMutex_;
  std::condition_variable wake_, done_;
  std::atomic<int> sleepers_{0};
  std::atomic<bool> callerSleeps_{false};
  std::atomic<bool> stop_{false};

  std::atomic<uint64_t> epoch_{0};
  std::atomic<bool> open_{false};
  std::atomic<int> active_{0};
  std::atomic<size_t> next_{0};
  size_t chunks_ = 0;
  int limit_ = 0;
  Body body_ = nullptr;
  void* context_ = nullptr;

  std::mutex errorMutex_;
  std::exception_ptr error_;
  size_t errorChunk_ = 0;
};

}  // namespace lowrank
