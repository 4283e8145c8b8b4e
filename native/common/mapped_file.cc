#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "error.h"

namespace lowrank {

void* mapFile(const std::string& path, size_t& bytes) {
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail("map", "a readable file", path + " (" + std::strerror(errno) + ")");
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    fail("map", "a regular file", path);
  }
  bytes = static_cast<size_t>(info.st_size);
  void* address = nullptr;
  if (bytes > 0) {
    address = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (address == MAP_FAILED) {
      int reason = errno;
      close(fd);
      throw RangeError("[map] expected room to map " + std::to_string(bytes) + " bytes of " + path +
                       ", received " + std::strerror(reason));
    }
  }
  close(fd);
  return address;
}

void unmapFile(void* address, size_t bytes) noexcept {
  if (address) munmap(address, bytes);
}

void adviseLargePages(void* address, size_t bytes) noexcept {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = 1 << 21;
  uintptr_t from = (reinterpret_cast<uintptr_t>(address) + page - 1) & ~(page - 1);
  uintptr_t to = (reinterpret_cast<uintptr_t>(address) + bytes) & ~(page - 1);
  if (to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
  (void)address;
  (void)bytes;
#endif
}

void discardPages(void* address, uint64_t bytes) noexcept {
  // Large pages as a whole where there are some, so that none is taken apart.
  uintptr_t page = bytes >= (uint64_t{16} << 20) ? 1 << 21 : static_cast<uintptr_t>(getpagesize());
  uintptr_t from = (reinterpret_cast<uintptr_t>(address) + page - 1) & ~(page - 1);
  uintptr_t to = (reinterpret_cast<uintptr_t>(address) + bytes) & ~(page - 1);
#if defined(__linux__)
  constexpr int advice = MADV_DONTNEED;
#else
  constexpr int advice = MADV_FREE;
#endif
  if (to > from) madvise(reinterpret_cast<void*>(from), to - from, advice);
}

}  // namespace lowrank
