// A stream of the shim, as its runtime and the libraries beside it see it.
#pragma once

#include <functional>
#include <utility>
#include <vector>

struct cudaShimGraph {
  std::vector<std::function<void()>> work;
};
struct cudaShimStream {
  cudaShimGraph* captured = nullptr;  // while it captures
  bool broken = false;                // something came that no capture can hold

  // Does it at once, or notes it where the stream captures.
  void enqueue(std::function<void()> task) {
    if (captured) {
      captured->work.push_back(std::move(task));
    } else {
      task();
    }
  }
};
