export { type ProductSvd, svdOfProduct } from './factors.js';
export { thinQr, triangleOf } from './householder.js';
export { jacobiSvd, type MatrixSvd } from './jacobi.js';
export { Matrix } from './matrix.js';
export { qr } from './qr.js';
export {
  type RandomizedOptions,
  randomizedSvd,
  type Svd,
  svd,
  type TruncatedOptions,
  truncatedSvd,
} from './svd.js';
export { topSvd } from './top.js';
