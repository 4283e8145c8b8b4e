// Philox-4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
#pragma once

#include "device.h"

namespace lowrank {

// The four words of a counter under a key.
__device__ __forceinline__ void philox(uint64_t block, uint32_t stream, uint32_t step, uint64_t key,
                                       uint32_t (&word)[4]) {
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32), c2 = stream,
           c3 = step, k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    uint64_t a = static_cast<uint64_t>(c0) * 0xD2511F53u,
             b = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(b);
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  word[0] = c0;
  word[1] = c1;
  word[2] = c2;
  word[3] = c3;
}

}  // namespace lowrank
