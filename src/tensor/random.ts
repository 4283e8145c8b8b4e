/**
 * Counter-based random numbers: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy
 * as 1, 2, 3", SC 2011). A number is addressed by (seed, stream, step, element), so nothing has
 * to be stored to make it again, and every backend makes the same bits.
 */

const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;
const W0 = 0x9e3779b9;
const W1 = 0xbb67ae85;

/** High 32 bits of the 64-bit product of two unsigned 32-bit numbers. */
function mulHigh(a: number, b: number): number {
  const al = a & 0xffff;
  const ah = a >>> 16;
  const bl = b & 0xffff;
  const bh = b >>> 16;
  const cross = ah * bl + ((al * bl) >>> 16);
  const middle = al * bh + (cross & 0xffff);
  return (ah * bh + Math.floor(cross / 65536) + Math.floor(middle / 65536)) >>> 0;
}

/** Ten rounds on the counter `c` with the key (k0, k1); `c` becomes the four random words. */
export function philox(c: Uint32Array, k0: number, k1: number): void {
  let c0 = c[0] as number;
  let c1 = c[1] as number;
  let c2 = c[2] as number;
  let c3 = c[3] as number;
  for (let round = 0; round < 10; round++) {
    const h0 = mulHigh(M0, c0);
    const l0 = Math.imul(M0, c0) >>> 0;
    const h1 = mulHigh(M1, c2);
    const l1 = Math.imul(M1, c2) >>> 0;
    c0 = (h1 ^ c1 ^ k0) >>> 0;
    c1 = l1;
    c2 = (h0 ^ c3 ^ k1) >>> 0;
    c3 = l0;
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  c[0] = c0;
  c[1] = c1;
  c[2] = c2;
  c[3] = c3;
}

/** The address of a sequence of random numbers. */
export interface RandomAddress {
  /** 0 … 2⁵³ − 1. */
  readonly seed: number;
  /** What the numbers are for: a layer, a purpose. 0 … 2³² − 1. */
  readonly stream: number;
  /** Training step or other count. 0 … 2³² − 1. */
  readonly step?: number;
}

/** Words `start` … `start + count − 1` of the sequence at `address`, each uniform over 2³². */
export function randomWords(address: RandomAddress, count: number, start = 0): Uint32Array {
  const out = new Uint32Array(count);
  const k0 = address.seed >>> 0;
  const k1 = Math.floor(address.seed / 2 ** 32) >>> 0;
  const c = new Uint32Array(4);
  let block = -1;
  for (let i = 0; i < count; i++) {
    const at = start + i;
    if (Math.floor(at / 4) !== block) {
      block = Math.floor(at / 4);
      c[0] = block >>> 0;
      c[1] = Math.floor(block / 2 ** 32) >>> 0;
      c[2] = address.stream >>> 0;
      c[3] = (address.step ?? 0) >>> 0;
      philox(c, k0, k1);
    }
    out[i] = c[at % 4] as number;
  }
  return out;
}

/** Uniform numbers in [0, 1), 32 bits each. */
export function uniform(address: RandomAddress, count: number, start = 0): Float64Array {
  return Float64Array.from(randomWords(address, count, start), (w) => w / 2 ** 32);
}

/** Standard normal numbers by Box and Muller's transform of pairs of uniform ones. */
export function normal(address: RandomAddress, count: number): Float64Array {
  const words = randomWords(address, count + (count % 2));
  const out = new Float64Array(count);
  for (let i = 0; i < count; i += 2) {
    // (w + 1) / 2³² lies in (0, 1], so that its logarithm is finite.
    const radius = Math.sqrt(-2 * Math.log(((words[i] as number) + 1) / 2 ** 32));
    const angle = (2 * Math.PI * (words[i + 1] as number)) / 2 ** 32;
    out[i] = radius * Math.cos(angle);
    if (i + 1 < count) out[i + 1] = radius * Math.sin(angle);
  }
  return out;
}

/** A stream number for a name (FNV-1a, 32 bits), so that each parameter has its own sequence. */
export function streamOf(name: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < name.length; i++) {
    hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193) >>> 0;
  }
  return hash;
}

/** A permutation of 0 … count − 1, by Fisher and Yates' shuffle. */
export function shuffled(address: RandomAddress, count: number): Int32Array {
  const order = Int32Array.from({ length: count }, (_, i) => i);
  const u = uniform(address, count);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor((u[i] as number) * (i + 1));
    const held = order[i] as number;
    order[i] = order[j] as number;
    order[j] = held;
  }
  return order;
}
