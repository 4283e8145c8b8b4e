/** Writes convolutions and adapters of them with lowrank, and what they give, for conv.py. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { noGrad, scope } from '../../src/autograd/index.js';
import { writeSafetensors } from '../../src/io/safetensors.js';
import { LoraAdapters, type LoraConfig, saveAdapter } from '../../src/lora/index.js';
import { Conv1d, Conv2d, Module } from '../../src/nn/index.js';
import { reshape } from '../../src/ops/index.js';
import { tensor } from '../../src/tensor/create.js';
import { normal } from '../../src/tensor/random.js';
import { numel } from '../../src/tensor/shape.js';
import type { Tensor } from '../../src/tensor/tensor.js';
import { reference } from '../backends.js';
import { randomize } from '../support/tiny.js';

/** One adapter that PEFT loads, and the outputs it must give. */
export interface ConvCase {
  readonly name: string;
  readonly layers: Readonly<Record<string, object>>;
  readonly weights: string;
  readonly adapter: string;
  readonly expected: string;
  readonly merge: boolean;
}

/** As conv.py has it. */
class Vision extends Module {
  constructor(
    readonly first: Conv2d,
    readonly second: Conv1d,
  ) {
    super();
  }

  /** x [N, 4, 5, 4] → [N, 6, ..] */
  forward(x: Tensor): Tensor {
    const y = this.first.forward(x);
    return this.second.forward(reshape(y, [y.shape[0] as number, y.shape[1] as number, -1]));
  }
}

const random = (shape: number[], stream: number) =>
  tensor(
    normal({ seed: 9, stream }, numel(shape)).map((z) => 0.4 * z),
    shape,
    { backend: reference },
  );

/** PEFT's A does not take over a dilation, and has its own padding mode: neither is used here. */
const WALK = { stride: [2, 1], padding: 1 };

const PLANS: readonly { name: string; groups: number; lora: LoraConfig }[] = [
  { name: 'plain', groups: 1, lora: { targetModules: ['first', 'second'], rank: 3, alpha: 5 } },
  { name: 'dora', groups: 1, lora: { targetModules: ['first', 'second'], variant: 'dora' } },
  {
    name: 'bias of B, rsLoRA',
    groups: 1,
    lora: { targetModules: ['first'], rank: 2, loraBias: true, scaling: 'rslora' },
  },
  {
    name: 'two groups',
    groups: 2,
    lora: { targetModules: ['first', 'second'], rank: 4, alpha: 3 },
  },
  {
    name: 'two groups, bias of B',
    groups: 2,
    lora: { targetModules: ['first'], rank: 2, loraBias: true },
  },
];

/** Writes every case; what several groups give is merged by lowrank, which PEFT refuses. */
export function writeConvCases(root: string): ConvCase[] {
  return PLANS.flatMap(({ name, groups, lora }, i) => {
    const dir = join(root, String(i));
    mkdirSync(dir, { recursive: true });
    const at = (file: string) => join(dir, file);
    using model = new Vision(
      new Conv2d(random([4, 4 / groups, 3, 2], 1), random([4], 2), { ...WALK, groups }),
      new Conv1d(random([6, 4 / groups, 3], 3), null, { padding: 2, groups }),
    );
    writeSafetensors(at('weights'), new Map(model.namedParameters()), { format: 'pt' });
    using adapters = new LoraAdapters(model).add('a', lora, 1);
    randomize(adapters, 'a', 4, 0.5);
    saveAdapter(adapters, 'a', at('adapter'));
    const layers = {
      first: { kind: 'Conv2d', sizes: [4, 4, [3, 2]], walk: { ...WALK, groups } },
      second: { kind: 'Conv1d', sizes: [4, 6, 3], walk: { padding: 2, groups, bias: false } },
    };
    const x = random([2, 4, 5, 4], 5);
    const write = (file: string) => {
      const y = noGrad(() => scope(() => model.forward(x)));
      writeSafetensors(
        at(file),
        new Map([
          ['x', x],
          ['y', y],
        ]),
      );
    };
    write('beside');
    adapters.merge();
    write('merged');
    const common = { layers, weights: at('weights'), adapter: at('adapter') };
    return ['beside', 'merged'].map((what) => ({
      ...{ name: `convolutions, ${name}, ${what}`, ...common, expected: at(what) },
      merge: what === 'merged' && groups === 1,
    }));
  });
}
