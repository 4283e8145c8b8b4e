import { failure } from '../tensor/errors.js';

type Json = Readonly<Record<string, unknown>>;

/** Checked access to the fields of a config.json. Every method throws naming the field. */
export interface ConfigReader {
  /** A whole number of 1 or more. */
  count(field: string, fallback?: number): number;
  number(field: string, fallback?: number): number;
  flag(field: string, fallback?: boolean): boolean;
  /** Throws unless the field has one of these values. */
  only(field: string, values: readonly unknown[]): void;
  /** A nested object, or undefined where there is none. */
  object(field: string): ConfigReader | undefined;
  check(holds: boolean, expected: string): void;
}

/** Reads the fields of a configuration. @param where its name in errors */
export function readConfig(json: Json, where: string): ConfigReader {
  const fail = (field: string, expected: string, value = json[field]) =>
    failure(`config of ${where}`, `${field}: ${expected}`, JSON.stringify(value) ?? 'nothing');
  const read = <T>(
    field: string,
    fallback: T | undefined,
    valid: (v: unknown) => boolean,
    expected: string,
  ): T => {
    const value = json[field] ?? fallback;
    if (!valid(value)) throw fail(field, expected, value);
    return value as T;
  };
  return {
    count: (field, fallback) =>
      read(
        field,
        fallback,
        (v) => Number.isSafeInteger(v) && (v as number) > 0,
        'a whole number of 1 or more',
      ),
    number: (field, fallback) =>
      read(field, fallback, (v) => typeof v === 'number' && Number.isFinite(v), 'a number'),
    flag: (field, fallback) =>
      read(field, fallback, (v) => typeof v === 'boolean', 'true or false'),
    only: (field, values) => {
      if (!values.includes(json[field])) {
        throw fail(
          field,
          `one of ${values.filter((v) => v !== undefined).join(', ')} (no other is supported)`,
        );
      }
    },
    object: (field) => {
      const value = json[field];
      if (value === undefined || value === null) return undefined;
      if (typeof value !== 'object') throw fail(field, 'an object');
      return readConfig(value as Json, `${where}.${field}`);
    },
    check: (holds, expected) => {
      if (!holds) throw failure(`config of ${where}`, expected, 'another');
    },
  };
}
