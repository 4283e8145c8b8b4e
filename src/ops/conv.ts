import { scope } from '../autograd/index.js';
import { tensor, zeros } from '../tensor/create.js';
import { failure, shapeText } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { reshape } from './broadcast.js';
import { embedding } from './embedding.js';
import { linear } from './matmul.js';
import { concat, permute, slice } from './shape.js';

/** How a convolution walks over its input; a number stands for every dimension. */
export interface ConvOptions {
  /** Places between two outputs. Default 1. */
  readonly stride?: number | readonly number[];
  /** Zeros before and after the input. Default 0. */
  readonly padding?: number | readonly number[];
  /** Places between two taps of the kernel. Default 1. */
  readonly dilation?: number | readonly number[];
  /** Groups of channels that do not see each other. Default 1. */
  readonly groups?: number;
}

interface Geometry {
  readonly batch: number;
  readonly channels: number;
  readonly size: readonly [number, number];
  readonly kernel: readonly [number, number];
  readonly out: readonly [number, number];
  readonly stride: readonly [number, number];
  readonly padding: readonly [number, number];
  readonly dilation: readonly [number, number];
  readonly groups: number;
}

/** A setting of two dimensions, checked. */
function pair(
  name: string,
  value: number | readonly number[] | undefined,
  unset: number,
): readonly [number, number] {
  const list = value === undefined ? [unset] : typeof value === 'number' ? [value] : value;
  const both = list.length === 1 ? [list[0], list[0]] : list;
  const least = name === 'padding' ? 0 : 1;
  if (both.length === 2 && both.every((v) => Number.isSafeInteger(v) && (v as number) >= least)) {
    return both as unknown as readonly [number, number];
  }
  throw failure(`conv ${name}`, `one or two whole numbers of ${least} or more`, String(value));
}

function geometryOf(x: Tensor, w: Tensor, options: ConvOptions): Geometry {
  const { groups = 1 } = options;
  const [batch, channels, height, width] = x.shape as [number, number, number, number];
  const [out, inner, kh, kw] = w.shape as [number, number, number, number];
  const fits = x.shape.length === 4 && w.shape.length === 4 && Number.isSafeInteger(groups);
  if (!fits || groups < 1 || inner * groups !== channels || out % groups !== 0) {
    throw failure(
      'conv',
      `x [N, C, ..] to meet a weight [out, C / ${groups}, ..] with out a multiple of ${groups}`,
      `${shapeText(x.shape)} and ${shapeText(w.shape)}`,
    );
  }
  const stride = pair('stride', options.stride, 1);
  const padding = pair('padding', options.padding, 0);
  const dilation = pair('dilation', options.dilation, 1);
  const places = ([height, width] as const).map((n, i) => {
    const span = (dilation[i] as number) * ((i === 0 ? kh : kw) - 1) + 1;
    return Math.floor((n + 2 * (padding[i] as number) - span) / (stride[i] as number)) + 1;
  }) as unknown as readonly [number, number];
  if (places.some((n) => n < 1)) {
    throw failure('conv', 'an input that the kernel fits into', shapeText(x.shape));
  }
  const size = [height, width] as const;
  return {
    batch,
    channels,
    size,
    kernel: [kh, kw],
    out: places,
    stride,
    padding,
    dilation,
    groups,
  };
}

/** For every output place and tap the row of the input's places it reads; 0 stands for padding. */
function taps(g: Geometry): Int32Array {
  const [height, width] = g.size;
  const [kh, kw] = g.kernel;
  const [oh, ow] = g.out;
  const index = new Int32Array(g.batch * oh * ow * kh * kw);
  let at = 0;
  for (let n = 0; n < g.batch; n++) {
    for (let y = 0; y < oh; y++) {
      for (let x = 0; x < ow; x++) {
        for (let i = 0; i < kh; i++) {
          const row = y * g.stride[0] - g.padding[0] + i * g.dilation[0];
          for (let j = 0; j < kw; j++) {
            const column = x * g.stride[1] - g.padding[1] + j * g.dilation[1];
            const inside = row >= 0 && row < height && column >= 0 && column < width;
            index[at++] = inside ? 1 + (n * height + row) * width + column : 0;
          }
        }
      }
    }
  }
  return index;
}

/**
 * y[n, o, p] = Σ x[n, c, stride·p + dilation·k − padding] · w[o, c, k] + bias[o], over two
 * dimensions. Composed: the taps of every output are gathered into a row, and one product per
 * group meets them with the weight; both gradients follow.
 * @param x [N, C, H, W]
 * @param w [out, C / groups, kh, kw], as PyTorch stores it
 * @param bias [out]
 * @returns [N, out, H', W']
 */
export function conv2d(
  x: Tensor,
  w: Tensor,
  bias?: Tensor | null,
  options: ConvOptions = {},
): Tensor {
  const g = geometryOf(x, w, options);
  const { backend } = x;
  const [kh, kw] = g.kernel;
  const [oh, ow] = g.out;
  const rows = g.batch * oh * ow;
  const inner = g.channels / g.groups;
  const outer = (w.shape[0] as number) / g.groups;
  return scope(() => {
    const places = reshape(permute(x, [0, 2, 3, 1]), [-1, g.channels]);
    const table = concat([zeros([1, g.channels], { backend }), places], 0);
    const index = tensor(taps(g), [rows, kh * kw], { backend, dtype: 'i32' });
    const weight = reshape(permute(w, [0, 2, 3, 1]), [w.shape[0] as number, kh * kw * inner]);
    const parts = Array.from({ length: g.groups }, (_, i) => {
      const own = g.groups === 1 ? table : slice(table, 1, i * inner, (i + 1) * inner);
      const columns = reshape(embedding(own, index), [rows, kh * kw * inner]);
      const [from, to] = [i * outer, (i + 1) * outer];
      if (g.groups === 1) return linear(columns, weight, bias);
      return linear(columns, slice(weight, 0, from, to), bias ? slice(bias, 0, from, to) : null);
    });
    const y = parts.length === 1 ? (parts[0] as Tensor) : concat(parts, 1);
    return permute(reshape(y, [g.batch, oh, ow, outer * g.groups]), [0, 3, 1, 2]);
  });
}

/**
 * The same over one dimension.
 * @param x [N, C, L]
 * @param w [out, C / groups, k]
 * @param bias [out]
 * @returns [N, out, L']
 */
export function conv1d(
  x: Tensor,
  w: Tensor,
  bias?: Tensor | null,
  options: ConvOptions = {},
): Tensor {
  if (x.shape.length !== 3 || w.shape.length !== 3) {
    const shapes = `${shapeText(x.shape)} and ${shapeText(w.shape)}`;
    throw failure('conv1d', 'x [N, C, L] and a weight [out, C / groups, k]', shapes);
  }
  const along = (value: number | readonly number[] | undefined, none: number) =>
    value === undefined ? undefined : [none, ...[value].flat()];
  const [stride, padding, dilation] = [
    along(options.stride, 1),
    along(options.padding, 0),
    along(options.dilation, 1),
  ];
  const flat = (t: Tensor) => reshape(t, [t.shape[0], t.shape[1], 1, t.shape[2]] as number[]);
  return scope(() => {
    const y = conv2d(flat(x), flat(w), bias, {
      ...(stride ? { stride } : {}),
      ...(padding ? { padding } : {}),
      ...(dilation ? { dilation } : {}),
      ...(options.groups === undefined ? {} : { groups: options.groups }),
    });
    return reshape(y, [y.shape[0], y.shape[1], y.shape[3]] as number[]);
  });
}
