"""Times f32 matrix products of NumPy's OpenBLAS; the peer of bench/peers/gemm.ts.

usage: openblas_gemm.py   (sizes "m n k" a line on standard input; answers GFLOP/s a line)
Threads by OPENBLAS_NUM_THREADS.
"""
import sys
import time

import numpy as np

for line in sys.stdin:
    m, n, k = map(int, line.split())
    a = np.random.rand(m, k).astype(np.float32)
    b = np.random.rand(k, n).astype(np.float32)
    out = np.empty((m, n), np.float32)
    np.matmul(a, b, out=out)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        np.matmul(a, b, out=out)
        times.append(time.perf_counter() - start)
    print(2 * m * n * k / sorted(times)[3] / 1e9, flush=True)
