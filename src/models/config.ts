import { failure } from '../tensor/errors.js';

type Json = Readonly<Record<string, unknown>>;

/** Checked access to the fields of a config.json. Every method throws naming the field. */
export interface ConfigReader {
  /** A whole number of 1 or more. */
  count(field: string, fallback?: number): number;
  number(field: string, fallback?: number): number;
  /** A number, or undefined where there is none or null. */
  optionalNumber(field: string): number | undefined;
  text(field: string, fallback?: string): string;
  /** A text, or undefined where there is none or null. */
  optionalText(field: string): string | undefined;
  /** How many fields a nested object has, or undefined where there is none. */
  size(field: string): number | undefined;
  /** A list of texts, or undefined where there is none or null. */
  texts(field: string): readonly string[] | undefined;
  /** A whole number of 1 or more; null where the field is null, `fallback` where there is none. */
  countOrNull(field: string, fallback: number | null): number | null;
  /** A probability of dropout, 0 ≤ p < 1. */
  dropout(field: string, fallback: number): number;
  flag(field: string, fallback?: boolean): boolean;
  /** Throws unless the field has one of these values. */
  only(field: string, values: readonly unknown[]): void;
  /** A nested object, or undefined where there is none. */
  object(field: string): ConfigReader | undefined;
  /** A reader of no fields at all. */
  empty(): ConfigReader;
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
  const isNumber = (v: unknown) => typeof v === 'number' && Number.isFinite(v);
  const isCount = (v: unknown) => Number.isSafeInteger(v) && (v as number) > 0;
  return {
    optionalNumber: (field) =>
      json[field] === null || json[field] === undefined
        ? undefined
        : read<number>(field, undefined, isNumber, 'a number'),
    text: (field, fallback) => read(field, fallback, (v) => typeof v === 'string', 'a text'),
    optionalText: (field) =>
      json[field] === null || json[field] === undefined
        ? undefined
        : read<string>(field, undefined, (v) => typeof v === 'string', 'a text'),
    size: (field) => {
      const value = json[field];
      if (value === undefined || value === null) return undefined;
      if (typeof value !== 'object') throw fail(field, 'an object');
      return Object.keys(value).length;
    },
    texts: (field) =>
      json[field] === null || json[field] === undefined
        ? undefined
        : read<readonly string[]>(
            field,
            undefined,
            (v) => Array.isArray(v) && v.every((t) => typeof t === 'string'),
            'a list of texts',
          ),
    countOrNull: (field, fallback) => {
      if (json[field] === null) return null;
      if (json[field] === undefined) return fallback;
      return read<number>(field, undefined, isCount, 'a whole number of 1 or more, or null');
    },
    dropout: (field, fallback) =>
      read(
        field,
        fallback,
        (v) => isNumber(v) && (v as number) >= 0 && (v as number) < 1,
        'a probability of 0 ≤ p < 1',
      ),
    empty: () => readConfig({}, where),
    count: (field, fallback) => read(field, fallback, isCount, 'a whole number of 1 or more'),
    number: (field, fallback) => read(field, fallback, isNumber, 'a number'),
    flag: (field, fallback) =>
      read(field, fallback, (v) => typeof v === 'boolean', 'true or false'),
    only: (field, values) => {
      if (!values.includes(json[field])) {
        throw fail(
          field,
          `one of ${values.filter((v) => v !== undefined && v !== null).join(', ')} (no other is supported)`,
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
