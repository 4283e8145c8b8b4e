// time-limit: 300
// What the CUDA backend does when something is missing or fails, played by the shim's runtime.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { scope } from '../src/autograd/index.js';
import { SafetensorsFile } from '../src/io/safetensors.js';
import { writeSafetensors } from '../src/io/safetensors-writer.js';
import type { Purpose } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { CudaBackend, loadCuda } from '../src/tensor/cuda.js';
import { getBackend } from '../src/tensor/registry.js';
import { Tensor } from '../src/tensor/tensor.js';
import { native, reference } from './backends.js';
import { shimLibrary } from './cuda.js';
import { skipUnless } from './support.js';

const test = suite('cuda runtime');
const onShim = skipUnless(test, native !== null, 'no native addon, and so no CUDA shim');
const shim = native ? shimLibrary() : '';
const folder = mkdtempSync(join(tmpdir(), 'cuda-runtime-'));
test.after(() => rmSync(folder, { recursive: true, force: true }));
test.after.each(() => {
  delete process.env.LOWRANK_SHIM_FAIL;
  delete process.env.LOWRANK_SHIM_MEMORY;
});

/** Plays a failure from here to the end of the test. */
function play(failure: string): void {
  process.env.LOWRANK_SHIM_FAIL = failure;
}

const open = (device = 0): CudaBackend => loadCuda(device, shim);

const empty = (backend: CudaBackend, size: number, purpose: Purpose = 'activation') =>
  Tensor.empty(backend, [size], 'f32', purpose);

/** y = 2x + 1 of [1, 2, 3]. */
function work(backend: CudaBackend): number[] {
  return scope(() => {
    const x = tensor([1, 2, 3], [3], { backend });
    const y = empty(backend, 3);
    backend.run('affine', [x, y], [2, 1]);
    return y.toNumbers();
  });
}

onShim(
  'a missing driver, an old one, no GPU, an old one: each has its sentence and way out',
  () => {
    const cases: [string, RegExp][] = [
      ['no-driver', /expected an NVIDIA driver, received none\. Install .*--backend cpu/],
      [
        'old-driver',
        /expected a driver for CUDA 13\.0, received one for 11\.8\. Update the driver/,
      ],
      ['no-device', /expected an NVIDIA GPU, received none .*CUDA_VISIBLE_DEVICES/],
      ['old-device', /compute capability 8\.0 or more, received CUDA shim of 7\.0\. Use --backend/],
    ];
    for (const [failure, text] of cases) {
      play(failure);
      assert.throws(() => open(), text);
    }
    delete process.env.LOWRANK_SHIM_FAIL;
    assert.equal(work(open()), [3, 5, 7], 'and works once nothing fails');
  },
);

onShim('a device number that is none is an error', () => {
  assert.throws(() => open(3), /expected a device from 0 to 0, received 3/);
});

onShim('a stream or pinned memory that cannot be had when the device is opened', () => {
  play('stream');
  assert.throws(() => open(), /\[backend cuda\] .*cudaErrorMemoryAllocation/);
  play('host:1');
  assert.throws(() => open(), /\[backend cuda\] .*cudaErrorMemoryAllocation/);
});

onShim('a library that is none, and one that is no backend', () => {
  assert.throws(
    () => loadCuda(0, join(folder, 'none.so')),
    /received none.*lowrank build --cuda on/,
  );
  writeFileSync(join(folder, 'text.so'), 'text');
  const text = /a CUDA library that loads .*text\.so.*\. Build it again: npx lowrank build --cuda/;
  assert.throws(() => loadCuda(0, join(folder, 'text.so')), text);
  const report = process.report.getReport() as unknown as { sharedObjects: string[] };
  const other = report.sharedObjects.find((path) => /\/libm[.-]/.test(path));
  if (other) assert.throws(() => loadCuda(0, other), /expected a backend of lowrank/);
});

onShim('where memory ends the error says what is held for what, and how to fit', () => {
  process.env.LOWRANK_SHIM_MEMORY = String(10 << 20);
  const backend = open();
  const frozen = empty(backend, 800_000, 'frozen');
  const error = (() => {
    try {
      empty(backend, 2_000_000);
    } catch (e) {
      return e as Error;
    }
    throw new Error('expected an error');
  })();
  assert.instance(error, RangeError);
  assert.match(error.message, 'expected memory for 8000000 bytes');
  assert.match(error.message, /\(\d+ of 10485760 bytes free\); held: frozen 3200000, idle 0/);
  assert.match(error.message, 'To fit: a smaller batch or sequence, gradient checkpointing');
  frozen.dispose();
  const later = empty(backend, 2_000_000);
  assert.is(later.bytes().length, 8_000_000, 'and works where there is room again');
  later.dispose();
  assert.is(backend.memory().total, 0);
  backend.trim();
});

onShim('idle memory is given back before an allocation fails', () => {
  process.env.LOWRANK_SHIM_MEMORY = String(10 << 20);
  const backend = open();
  empty(backend, 600_000).dispose();
  const next = empty(backend, 2_000_000);
  next.dispose();
  assert.is(backend.memory().total, 0);
});

onShim('the n-th allocation that fails leaves the books right, and the backend usable', () => {
  const backend = open();
  assert.equal(work(backend), [3, 5, 7]);
  for (let n = 1; n <= 2; n++) {
    backend.trim();
    play(`malloc:${n}`);
    assert.throws(() => work(backend), /expected memory for 12 bytes/);
    assert.is(backend.memory().total, 0);
    assert.is(backend.memory().handles, 0);
    delete process.env.LOWRANK_SHIM_FAIL;
    assert.equal(work(backend), [3, 5, 7]);
  }
});

onShim('a failed launch, copy or wait names the call, and the backend stays usable', () => {
  const backend = open();
  const cases: [string, RegExp][] = [
    ['launch', /\[affine\] expected CUDA to succeed, received cudaErrorLaunchFailure/],
    ['copy', /\[write\] expected CUDA to succeed, received cudaErrorIllegalAddress/],
    ['copy=2', /\[read\] expected CUDA to succeed, received cudaErrorIllegalAddress/],
    ['sync', /\[read\] expected CUDA to succeed, received cudaErrorLaunchFailure/],
  ];
  for (const [failure, text] of cases) {
    play(failure);
    assert.throws(() => work(backend), text, failure);
    assert.is(backend.memory().total, 0, failure);
    delete process.env.LOWRANK_SHIM_FAIL;
    assert.equal(work(backend), [3, 5, 7], failure);
  }
});

onShim('without pinned memory or events uploads wait for their copies', () => {
  for (const failure of ['host:1', 'event:1', 'event=2']) {
    const backend = open();
    play(failure);
    assert.equal(work(backend), [3, 5, 7], failure);
    delete process.env.LOWRANK_SHIM_FAIL;
    assert.equal(work(backend), [3, 5, 7], failure);
  }
});

onShim('uploads beyond the staging memory, and of every alignment, arrive', () => {
  const backend = open();
  const bytes = Uint8Array.from({ length: 11_000_001 }, (_, i) => (i * 31) & 255);
  scope(() => {
    const big = tensor(bytes, [bytes.length], { backend, dtype: 'u8' });
    assert.ok(Buffer.from(big.bytes()).equals(Buffer.from(bytes)));
    const small: Tensor[] = [];
    for (let i = 0; i < 3000; i++) {
      const part = bytes.subarray(i, i + 1 + ((i * 7) % 4001));
      small.push(tensor(part, [part.length], { backend, dtype: 'u8' }));
    }
    small.forEach((t, i) => {
      const part = bytes.subarray(i, i + 1 + ((i * 7) % 4001));
      assert.ok(Buffer.from(t.bytes()).equals(Buffer.from(part)), `upload ${i}`);
    });
  });
  assert.is(backend.memory().total, 0);
});

onShim('a mapped file is copied whole, and one that does not fit is an error', () => {
  const path = join(folder, 'file');
  writeFileSync(path, Buffer.alloc(9_000_003, 'lowrank '));
  const backend = open();
  const { handle, bytes } = backend.mapFile(path);
  const copy = Buffer.alloc(bytes);
  backend.download(handle, 0, copy);
  assert.ok(copy.equals(readFileSync(path)));
  assert.is(backend.memory().mapped, bytes);
  backend.free(handle);
  process.env.LOWRANK_SHIM_MEMORY = String(1 << 20);
  assert.throws(() => open().mapFile(path), /\[map\] expected memory for 9000003 bytes/);
  assert.is(backend.memory().total, 0);
});

onShim('a checkpoint’s tensors are copied from where the file is mapped', () => {
  const path = join(folder, 'some.safetensors');
  const values = Float32Array.from({ length: 2_500_000 }, (_, i) => i / 7);
  using big = tensor(values, [values.length], { backend: reference });
  using small = tensor([1, 2, 3], [3], { backend: reference });
  writeSafetensors(
    path,
    new Map([
      ['small', small],
      ['big', big],
    ]),
  );
  const backend = open();
  const file = SafetensorsFile.open(path);
  const { upload } = CudaBackend.prototype;
  let uploads = 0;
  CudaBackend.prototype.upload = function (...args) {
    uploads++;
    upload.apply(this, args);
  };
  try {
    for (const [name, want] of [
      ['big', big],
      ['small', small],
    ] as const) {
      using got = file.load(name, { backend });
      assert.ok(Buffer.from(got.bytes()).equals(want.bytes()), name);
    }
  } finally {
    CudaBackend.prototype.upload = upload;
  }
  assert.is(uploads, 0, 'none of it came through JavaScript');
  const handle = backend.allocate(8, 'frozen');
  const read = (at: number, position: number, bytes: number) => () =>
    backend.uploadFile(handle, at, path, position, bytes);
  assert.throws(
    read(0, 0, 9),
    '[writeFile] expected a range within 8 bytes, received 9 bytes at 0',
  );
  assert.throws(read(0, 1e9, 8), /\[writeFile\] expected 8 bytes at 1000000000 in .* a file of 10/);
  assert.throws(() => backend.uploadFile(handle, 0, join(folder, 'none'), 0, 8), /none/);
  backend.free(handle);
  assert.is(backend.memory().total, 0);
});

onShim('it describes itself, and threads and other devices are none of its business', () => {
  const backend = open();
  assert.is(backend.name, 'cuda');
  assert.is(backend.describe(), 'cuda (CUDA shim)');
  backend.setThreads(3);
  assert.throws(() => backend.setIsa('avx2'), '[setIsa] expected CUDA shim, received avx2');
  const facts = backend.facts();
  assert.is(facts.capability, '9.0');
  assert.is(facts.driver, '13.0');
  backend.setCompute('bf16');
  assert.is(backend.describe(), 'cuda (CUDA shim, products in bf16)');
});

onShim('nothing is left after all these failures', () => {
  const left = join(folder, 'left');
  const child = spawnSync(
    process.execPath,
    ['--import', 'tsx', 'test/cuda/failures.ts', shim, join(folder, 'file')],
    { encoding: 'utf8', env: { ...process.env, LOWRANK_SHIM_LEFT: left } },
  );
  assert.is(child.status, 0, child.stderr);
  const none = 'blocks 0, bytes 0, pinned 0, streams 0, events 0, graphs 0';
  assert.is(readFileSync(left, 'utf8'), none);
});

const LIBRARY = 'build/Release/liblowrank_cuda.so';
const onReal = skipUnless(
  test,
  native !== null && existsSync(LIBRARY) && !existsSync('/dev/nvidiactl'),
  'no CUDA library was built, or there is a GPU',
);

onReal('the real library loads where no driver is, and says so; doctor tells it', () => {
  const text = /expected an NVIDIA driver, received none\. Install the driver/;
  assert.throws(() => loadCuda(), text);
  assert.throws(() => getBackend('cuda'), text);
  const doctor = ['--import', 'tsx', 'src/cli/main.ts', 'doctor'];
  const { status, stdout } = spawnSync(process.execPath, doctor, { encoding: 'utf8' });
  assert.is(status, 0);
  assert.match(stdout, /cuda +no: \[backend cuda\] expected an NVIDIA driver/);
});

test('getBackend knows cuda and numbers of GPUs, and tells a misspelt one', () => {
  assert.throws(() => getBackend('cuda:x'), /expected one of auto, cpu, cuda, reference/);
  assert.throws(() => getBackend('cud'), 'Did you mean cuda?');
});

test.run();
