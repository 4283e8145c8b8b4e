import { type BackwardContext, defineOp, first, type Meta, type Op } from '../autograd/index.js';
import { full } from '../tensor/create.js';
import { computeDType } from '../tensor/dtype.js';
import { broadcastShapes } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import { sumTo } from './broadcast.js';

/** Shape and dtype of an elementwise result of two broadcast inputs. */
function inferBinary(name: string) {
  return ([a, b]: readonly Meta[]): Meta[] => {
    const x = a as Meta;
    const y = b as Meta;
    return [
      {
        shape: broadcastShapes(name, x.shape, y.shape),
        dtype: computeDType([x.dtype, y.dtype]),
      },
    ];
  };
}

const binarySamples = [
  { label: 'same shape', inputs: [{ shape: [3, 5] }, { shape: [3, 5], shift: 3, scale: 0.3 }] },
  { label: 'row broadcast', inputs: [{ shape: [2, 3, 7] }, { shape: [7], shift: 3, scale: 0.3 }] },
  {
    label: 'both broadcast',
    inputs: [{ shape: [4, 1, 3] }, { shape: [5, 1], shift: -3, scale: 0.3 }],
  },
  { label: 'scalar', inputs: [{ shape: [] }, { shape: [33], shift: 3, scale: 0.3 }] },
  {
    label: 'near each other',
    inputs: [
      { shape: [3, 5], shift: 2, scale: 0.3 },
      { shape: [3, 1], shift: 2, scale: 0.3 },
    ],
  },
  { label: 'empty', inputs: [{ shape: [0, 3] }, { shape: [1, 3] }] },
].map((s) => ({ ...s, attrs: undefined }));

/** An elementwise op of two inputs; `gradient` answers dy·∂y/∂a and dy·∂y/∂b before broadcasting is undone. */
function binary(
  name: string,
  reads: (needs: readonly boolean[]) => number[],
  gradient: (ctx: BackwardContext<void>) => (Tensor | null)[],
): Op<void> {
  return defineOp<void>({
    name,
    infer: inferBinary(name),
    reads: (needs) => ({ inputs: reads(needs) }),
    backward: (ctx) => {
      const [da, db] = gradient(ctx);
      const [a, b] = ctx.inputs as readonly [Meta, Meta];
      return [da ? sumTo(da, a.shape) : null, db ? sumTo(db, b.shape) : null];
    },
    samples: binarySamples,
  });
}

const none = () => [];

// y = a + b: da = dy, db = dy
const addOp = binary('add', none, ({ grad }) => [grad, grad]);

// y = a − b: da = dy, db = −dy
const subOp = binary('sub', none, ({ grad, needs }) => [grad, needs[1] ? neg(grad) : null]);

// y = a·b: da = dy·b, db = dy·a
const mulOp = binary(
  'mul',
  (needs) => [...(needs[1] ? [0] : []), ...(needs[0] ? [1] : [])],
  ({ grad, needs, input }) => [
    needs[0] ? mul(grad, input(1)) : null,
    needs[1] ? mul(grad, input(0)) : null,
  ],
);

// y = a/b: da = dy/b, db = −dy·a/b²
const divOp = binary(
  'div',
  (needs) => (needs[1] ? [0, 1] : [1]),
  ({ grad, needs, input }) => {
    const da = div(grad, input(1));
    return [da, needs[1] ? neg(div(mul(da, input(0)), input(1))) : null];
  },
);

/** a + b, broadcast by NumPy's rule. */
export function add(a: Tensor, b: Tensor): Tensor {
  return first(addOp([a, b], undefined));
}

/** a − b, broadcast by NumPy's rule. */
export function sub(a: Tensor, b: Tensor): Tensor {
  return first(subOp([a, b], undefined));
}

/** a·b elementwise, broadcast by NumPy's rule. */
export function mul(a: Tensor, b: Tensor): Tensor {
  return first(mulOp([a, b], undefined));
}

/** a / b elementwise, broadcast by NumPy's rule. */
export function div(a: Tensor, b: Tensor): Tensor {
  return first(divOp([a, b], undefined));
}

function sameAsInput([x]: readonly Meta[]): Meta[] {
  const { shape, dtype } = x as Meta;
  return [{ shape, dtype: computeDType([dtype]) }];
}

const affineOp = defineOp<{ scale: number; shift: number }>({
  name: 'affine',
  infer: sameAsInput,
  encode: ({ scale, shift }) => [scale, shift],
  // y = s·x + t: dx = s·dy
  backward: ({ grad, attrs }) => [scale(grad, attrs.scale)],
  samples: [
    { label: 'odd', inputs: [{ shape: [3, 5] }], attrs: { scale: -2.5, shift: 0.75 } },
    { label: 'one', inputs: [{ shape: [1] }], attrs: { scale: 0, shift: 1 } },
    { label: 'empty', inputs: [{ shape: [2, 0] }], attrs: { scale: 1, shift: 1 } },
  ],
});

/** scale·x + shift, elementwise with two numbers. */
export function affine(x: Tensor, scale: number, shift = 0): Tensor {
  return first(affineOp([x], { scale, shift }));
}

/** factor·x. */
export function scale(x: Tensor, factor: number): Tensor {
  return affine(x, factor);
}

interface UnaryRule {
  readonly reads: 'input' | 'output' | 'none';
  /** dx from dy and what is read. */
  readonly gradient: (dy: Tensor, read: Tensor) => Tensor;
  /** Keeps the samples inside the domain and off kinks. */
  readonly positive?: boolean;
}

function unary(name: string, rule: UnaryRule): (x: Tensor) => Tensor {
  const range = rule.positive ? { scale: 0.2, shift: 2 } : {};
  const op = defineOp<void>({
    name,
    infer: sameAsInput,
    reads: () =>
      rule.reads === 'none' ? {} : rule.reads === 'input' ? { inputs: [0] } : { outputs: [0] },
    backward: ({ grad, input, output }) => [
      rule.gradient(
        grad,
        rule.reads === 'input' ? input(0) : rule.reads === 'output' ? output(0) : grad,
      ),
    ],
    samples: [
      { label: 'odd', inputs: [{ shape: [3, 37], ...range }], attrs: undefined },
      { label: 'one', inputs: [{ shape: [1, 1], ...range }], attrs: undefined },
      { label: 'empty', inputs: [{ shape: [0, 2], ...range }], attrs: undefined },
    ],
  });
  return (x) => first(op([x], undefined));
}

/** −x. */
export const neg = unary('neg', { reads: 'none', gradient: (dy) => neg(dy) });

/** eˣ. */
export const exp = unary('exp', { reads: 'output', gradient: (dy, y) => mul(dy, y) });

/** Natural logarithm. */
export const log = unary('log', {
  reads: 'input',
  gradient: (dy, x) => div(dy, x),
  positive: true,
});

/** √x. dx = dy / (2y) */
export const sqrt = unary('sqrt', {
  reads: 'output',
  gradient: (dy, y) => scale(div(dy, y), 0.5),
  positive: true,
});

/** 1/√x. dx = −dy·y³/2 */
export const rsqrt = unary('rsqrt', {
  reads: 'output',
  gradient: (dy, y) => scale(mul(dy, mul(y, mul(y, y))), -0.5),
  positive: true,
});

/** Hyperbolic tangent. dx = dy·(1 − y²) */
export const tanh = unary('tanh', {
  reads: 'output',
  gradient: (dy, y) => mul(dy, affine(mul(y, y), -1, 1)),
});

/** 1/(1 + e⁻ˣ). dx = dy·y·(1 − y) */
export const sigmoid = unary('sigmoid', {
  reads: 'output',
  gradient: (dy, y) => mul(dy, mul(y, affine(y, -1, 1))),
});

/** The smallest normal f32: a divisor that turns 0/0 into 0 and changes no other quotient. */
const TINY = 2 ** -126;

/** 1 where x > 0, else 0. */
export function positive(x: Tensor): Tensor {
  const r = relu(x);
  return div(r, maximum(r, full([], TINY, { backend: x.backend, dtype: r.dtype })));
}

/** |x|. dx = dy·sign(x), 0 at 0 */
export const abs = unary('abs', {
  reads: 'input',
  gradient: (dy, x) => mul(dy, sub(positive(x), positive(neg(x)))),
});

/** max(x, 0). dx = dy where x > 0, else 0 */
export const relu = unary('relu', {
  reads: 'output',
  gradient: (dy, y) => mul(dy, positive(y)),
});

const bothInputs = () => [0, 1];

// y = max(a, b): the gradient goes to a where a > b, else to b
const maximumOp = binary('maximum', bothInputs, ({ grad, input }) => {
  const toA = mul(grad, positive(sub(input(0), input(1))));
  return [toA, sub(grad, toA)];
});

// y = min(a, b): the gradient goes to b where a > b, else to a
const minimumOp = binary('minimum', bothInputs, ({ grad, input }) => {
  const toB = mul(grad, positive(sub(input(0), input(1))));
  return [sub(grad, toB), toB];
});

/** The larger of a and b elementwise, broadcast; NaN wins. */
export function maximum(a: Tensor, b: Tensor): Tensor {
  return first(maximumOp([a, b], undefined));
}

/** The smaller of a and b elementwise, broadcast; NaN wins. */
export function minimum(a: Tensor, b: Tensor): Tensor {
  return first(minimumOp([a, b], undefined));
}
