"""Times bf16 matrix products of PyTorch (oneDNN); the peer of bench/peers/gemm.ts --dtype bf16.

usage: torch_gemm.py THREADS   (cases "m n k transA transB" a line on standard input, 0 or 1 each;
                                answers GFLOP/s a line; one thread by processor time)
"""
import sys
import time

import torch

torch.set_num_threads(int(sys.argv[1]))
clock = time.process_time if sys.argv[1] == "1" else time.perf_counter
for line in sys.stdin:
    m, n, k, trans_a, trans_b = map(int, line.split())
    a = torch.rand((k, m) if trans_a else (m, k)).to(torch.bfloat16)
    b = torch.rand((n, k) if trans_b else (k, n)).to(torch.bfloat16)
    left, right = a.T if trans_a else a, b.T if trans_b else b
    out = torch.empty((m, n), dtype=torch.bfloat16)
    warm = time.perf_counter() + 0.05  # as bench/peers/gemm.ts does
    torch.mm(left, right, out=out)
    while time.perf_counter() < warm:
        torch.mm(left, right, out=out)
    times = []
    for _ in range(7):
        start = clock()
        torch.mm(left, right, out=out)
        times.append(clock() - start)
    print(2 * m * n * k / sorted(times)[3] / 1e9, flush=True)
