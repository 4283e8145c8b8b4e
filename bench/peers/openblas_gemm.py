"""Times f32 matrix products of NumPy's OpenBLAS; the peer of bench/peers/gemm.ts.

usage: openblas_gemm.py THREADS   (cases "m n k transA transB" a line on standard input, 0 or 1 each;
                                   answers GFLOP/s a line; one thread by processor time)
Threads by OPENBLAS_NUM_THREADS, too.
"""
import sys
import time

import numpy as np

clock = time.process_time if sys.argv[1] == "1" else time.perf_counter
for line in sys.stdin:
    m, n, k, trans_a, trans_b = map(int, line.split())
    a = np.random.rand(*((k, m) if trans_a else (m, k))).astype(np.float32)
    b = np.random.rand(*((n, k) if trans_b else (k, n))).astype(np.float32)
    left, right = a.T if trans_a else a, b.T if trans_b else b
    out = np.empty((m, n), np.float32)
    warm = time.perf_counter() + 0.05  # as bench/peers/gemm.ts does
    np.matmul(left, right, out=out)
    while time.perf_counter() < warm:
        np.matmul(left, right, out=out)
    times = []
    for _ in range(7):
        start = clock()
        np.matmul(left, right, out=out)
        times.append(clock() - start)
    print(2 * m * n * k / sorted(times)[3] / 1e9, flush=True)
