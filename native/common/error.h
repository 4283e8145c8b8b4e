// Errors that cross into JavaScript: every message names the kernel, what was expected and
// received.
#pragma once

#include <stdexcept>
#include <string>

namespace lowrank {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Memory that could not be had, or a size no memory can have: a RangeError in JavaScript.
struct RangeError : Error {
  using Error::Error;
};

struct TypeError : Error {
  using Error::Error;
};

[[noreturn]] inline void fail(const std::string& where, const std::string& expected,
                              const std::string& received) {
  throw Error("[" + where + "] expected " + expected + ", received " + received);
}

}  // namespace lowrank
