// Products by cuBLASLt, a library of NVIDIA's that is found at run time; without it, or where it
// has no way for a shape, the own kernels do the work.
#pragma once

#include <memory>
#include <string>

#include "product.h"

namespace lowrank {

// What the context keeps: a handle of the library, and the ways found so far.
class Blas;

// Computes p where cuBLASLt can: both factors of one type, batches by one step. Says whether it
// did, and in `after` whether what is made of y is done, too.
bool blasProduct(const CudaArgs& args, const Product& p, bool& after);

// Whether there is a library at all.
bool blasThere(CudaContext& context);

// In words, for `doctor`: the library in use, or what was looked for.
std::string blasState(const CudaContext& context);

}  // namespace lowrank
