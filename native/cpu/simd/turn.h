// Matrices turned as 32-bit words, a square of a vector's width at a time.

namespace {

// y [cols, rows] = x [rows, cols]^T, rows of each their step apart.
static void turnWords(const uint32_t* x, int64_t xStep, int64_t rows, int64_t cols, uint32_t* y,
                      int64_t yStep) {
  int64_t i = 0;
  for (; i + kWidth <= rows; i += kWidth) {
    int64_t j = 0;
    for (; j + kWidth <= cols; j += kWidth) {
      vf v[kWidth];
#pragma GCC unroll 16
      for (int r = 0; r < kWidth; r++) v[r] = load((const float*)(x + (i + r) * xStep + j));
      transpose(v);
#pragma GCC unroll 16
      for (int r = 0; r < kWidth; r++) store((float*)(y + (j + r) * yStep + i), v[r]);
    }
    for (; j < cols; j++) {
      for (int r = 0; r < kWidth; r++) y[j * yStep + i + r] = x[(i + r) * xStep + j];
    }
  }
  for (; i < rows; i++) {
    for (int64_t j = 0; j < cols; j++) y[j * yStep + i] = x[i * xStep + j];
  }
}

}  // namespace
