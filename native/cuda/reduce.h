// Sums that other families need.
#pragma once

#include "context.h"

namespace lowrank {

// y [width] = the sum of the rows of x [rows, width], f32, in one fixed order.
void sumOfRows(const CudaArgs& args, const float* x, int64_t rows, int64_t width, float* y);

}  // namespace lowrank
