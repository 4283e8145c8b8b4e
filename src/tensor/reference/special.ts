/** Special functions to double precision, which f64 gradient checks need. */

/** Below this, erf comes from its series; from here on, erfc from its continued fraction. */
const SPLIT = 2;
const FRACTION_TERMS = 60;

/** erf x = 2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (1·3·…·(2n+1)); every term has the sign of x. */
function erfSeries(x: number): number {
  let term = x;
  let sum = x;
  for (let n = 1; n < 100; n++) {
    term *= (2 * x * x) / (2 * n + 1);
    const next = sum + term;
    if (next === sum) break;
    sum = next;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

/** erfc x = e^(−x²)/√π · 1/(x + (1/2)/(x + (2/2)/(x + (3/2)/(x + …)))), for x ≥ SPLIT. */
function erfcFraction(x: number): number {
  let below = x;
  for (let n = FRACTION_TERMS; n >= 1; n--) below = x + n / 2 / below;
  return Math.exp(-x * x) / (Math.sqrt(Math.PI) * below);
}

/** The error function, within about 1e-15. */
export function erf(x: number): number {
  if (x >= SPLIT) return 1 - erfcFraction(x);
  if (x <= -SPLIT) return erfcFraction(-x) - 1;
  return erfSeries(x);
}

/** The standard normal distribution Φ(x) = ½ erfc(−x/√2), without cancellation in the left tail. */
export function normalCdf(x: number): number {
  const z = x * Math.SQRT1_2;
  if (z <= -SPLIT) return erfcFraction(-z) / 2;
  return (1 + erf(z)) / 2;
}

/** The standard normal density φ(x). */
export function normalPdf(x: number): number {
  return Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);
}

/** 1 / (1 + e^−x), without overflow on either side. */
export function sigmoid(x: number): number {
  if (x >= 0) return 1 / (1 + Math.exp(-x));
  const e = Math.exp(x);
  return e / (1 + e);
}
