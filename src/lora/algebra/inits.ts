import { scope } from '../../autograd/index.js';
import { streamOf } from '../../tensor/random.js';
import type { Tensor } from '../../tensor/tensor.js';
import type { Start, StartMaker, StartRequest } from '../init.js';
import { oloraFactors, orthogonalStart, pissaFactors } from './starts.js';

type Factors = { readonly a: Tensor; readonly b: Tensor };

function fromWeight(make: (request: StartRequest) => Factors): StartMaker {
  return (request): Start =>
    scope(() => {
      const { a, b } = make(request);
      return {
        a: a.toArray() as Float32Array,
        b: b.toArray() as Float32Array,
        residual: true,
      };
    });
}

const optionsOf = ({ site, rank, scaling }: StartRequest) => ({
  ...{ rank, scaling, transposed: site.transposed },
});

/** `pissa`, or with power iterations `pissa_niter_N`, as a way to begin; see `registerInit`. */
export function pissaInit(iterations?: number): StartMaker {
  return fromWeight((request) =>
    pissaFactors(request.site.weight, {
      ...optionsOf(request),
      seed: request.seed,
      ...(iterations === undefined ? {} : { iterations }),
    }),
  );
}

/** `olora` as a way to begin; see `registerInit`. */
export const oloraInit: StartMaker = fromWeight((request) =>
  oloraFactors(request.site.weight, optionsOf(request)),
);

/** `orthogonal` as a way to begin; the base stays as it is, for B A is 0. */
export const orthogonalInit: StartMaker = ({ site, rank, seed }) =>
  orthogonalStart(rank, site.inFeatures, site.outFeatures, {
    seed,
    stream: streamOf(`${site.path}.lora_A`),
  });
