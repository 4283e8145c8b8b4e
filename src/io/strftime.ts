const DAYS = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday'];
const MONTHS = [
  ...['January', 'February', 'March', 'April', 'May', 'June', 'July'],
  ...['August', 'September', 'October', 'November', 'December'],
];

const DAY_MS = 86_400_000;

/** Places of a year gone by on this day, from 1. */
function dayOfYear(d: Date): number {
  const day = Date.UTC(d.getFullYear(), d.getMonth(), d.getDate());
  return (day - Date.UTC(d.getFullYear(), 0, 0)) / DAY_MS;
}

/** A value and its digits; `%-d` and the like leave out the zeros in front. */
const NUMBERS: Readonly<Record<string, (d: Date) => [number, number]>> = {
  Y: (d) => [d.getFullYear(), 4],
  y: (d) => [d.getFullYear() % 100, 2],
  m: (d) => [d.getMonth() + 1, 2],
  d: (d) => [d.getDate(), 2],
  H: (d) => [d.getHours(), 2],
  I: (d) => [d.getHours() % 12 || 12, 2],
  M: (d) => [d.getMinutes(), 2],
  S: (d) => [d.getSeconds(), 2],
  f: (d) => [d.getMilliseconds() * 1000, 6],
  j: (d) => [dayOfYear(d), 3],
  w: (d) => [d.getDay(), 1],
  u: (d) => [d.getDay() || 7, 1],
};

const TEXTS: Readonly<Record<string, (d: Date) => string>> = {
  A: (d) => DAYS[d.getDay()] as string,
  a: (d) => (DAYS[d.getDay()] as string).slice(0, 3),
  B: (d) => MONTHS[d.getMonth()] as string,
  b: (d) => (MONTHS[d.getMonth()] as string).slice(0, 3),
  h: (d) => (MONTHS[d.getMonth()] as string).slice(0, 3),
  p: (d) => (d.getHours() < 12 ? 'AM' : 'PM'),
  e: (d) => String(d.getDate()).padStart(2),
  F: (d) => strftime(d, '%Y-%m-%d'),
  T: (d) => strftime(d, '%H:%M:%S'),
  R: (d) => strftime(d, '%H:%M'),
  D: (d) => strftime(d, '%m/%d/%y'),
  x: (d) => strftime(d, '%m/%d/%y'),
  X: (d) => strftime(d, '%H:%M:%S'),
  c: (d) => strftime(d, '%a %b %e %H:%M:%S %Y'),
  n: () => '\n',
  t: () => '\t',
  // Python leaves these empty for a time without a zone.
  z: () => '',
  Z: () => '',
  '%': () => '%',
};

/**
 * A local time as Python's `datetime.strftime` writes it in the C locale.
 * @throws on a directive that is not known
 */
export function strftime(date: Date, format: string): string {
  return format.replace(/%(-?)(.|$)/gs, (whole, bare: string, key: string) => {
    const number = Object.hasOwn(NUMBERS, key) ? NUMBERS[key]?.(date) : undefined;
    if (number) return String(number[0]).padStart(bare ? 1 : number[1], '0');
    const text = Object.hasOwn(TEXTS, key) && !bare ? TEXTS[key]?.(date) : undefined;
    if (text !== undefined) return text;
    throw new Error(`strftime_now does not know "${whole}"`);
  });
}
