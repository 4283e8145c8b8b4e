// A whole file mapped read-only, and advice about pages. The only place that knows the system's
// mapping calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace lowrank {

// Maps the file; an empty file has a null address and 0 bytes. Throws Error with the system's
// reason.
void* mapFile(const std::string& path, size_t& bytes);
void unmapFile(void* address, size_t bytes) noexcept;

// Asks for large pages behind a big allocation; a hint without effect where unknown.
void adviseLargePages(void* address, size_t bytes) noexcept;

// Lets the system have the whole pages of a range; its addresses stay, with any contents.
void discardPages(void* address, uint64_t bytes) noexcept;

}  // namespace lowrank
