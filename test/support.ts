import type { Callback, Test } from 'uvu';

/** Registers one test, or one skip with its reason. */
export type Register<T> = (name: string, body: Callback<T>) => void;

/** The start of the lines by which the runner counts skips; `{"name", "reason"}` follows. */
export const SKIP_MARK = '[skip] ';

/**
 * Gives back `test` where `condition` holds, and else a function that skips its test and says why.
 * The runner prints the reasons at the end and fails a file that skips without one.
 *
 *     const onCpu = skipUnless(test, backends().includes('cpu'), 'no native addon was built');
 *     onCpu('matmul agrees with the reference', () => { … });
 *
 * @param test a uvu suite
 * @param condition whether the test can run here
 * @param reason what is missing, in words for the reader of a log
 */
export function skipUnless<T>(test: Test<T>, condition: boolean, reason: string): Register<T> {
  if (reason.trim() === '') {
    throw new Error('[skipUnless] expected a reason, received an empty string');
  }
  if (condition) return (name, body) => test(name, body);
  return (name) => {
    test.skip(name);
    console.log(`${SKIP_MARK}${JSON.stringify({ name, reason })}`);
  };
}
