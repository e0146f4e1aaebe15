/** Figures with their units, as text. */

const COUNT = new Intl.NumberFormat("en");
const SIZES = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
const MINUTE = 60;
const HOUR = 3600;

/** Return a whole number with separators: "17,408". */
export function countText(value: number): string {
  return COUNT.format(Math.round(value));
}

/** Return a number with three digits that count, as far as they are behind the point: "0.52", "12.5", "540". */
export function figureText(value: number): string {
  if (value >= 99.95) return countText(value);
  return String(Number(value.toFixed(value >= 9.995 ? 1 : 2)));
}

/** Return a number of bytes: "7.9 GiB". */
export function sizeText(nbytes: number): string {
  let power = 0;
  let value = nbytes;
  while (value >= 1023.95 && power < SIZES.length - 1) {
    value /= 1024;
    power++;
  }
  return `${power === 0 ? countText(value) : String(Number(value.toFixed(1)))} ${SIZES[power]}`;
}

/** Return a duration: "340 ms", "1.5 s", "40 s", "3 min", "1 h 20 min". */
export function secondsText(seconds: number): string {
  if (seconds < 0.9995) return `${figureText(1000 * seconds)} ms`;
  if (seconds < 9.95) return `${figureText(seconds)} s`;
  if (seconds < 1.5 * MINUTE) return `${Math.round(seconds)} s`;
  if (seconds < HOUR - MINUTE / 2) return `${Math.round(seconds / MINUTE)} min`;
  const minutes = Math.round(seconds / MINUTE);
  return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes / 60} h`;
}

/** Return a count with its noun: "1 request", "2 requests", "3 passes". */
export function several(count: number, noun: string): string {
  return `${countText(count)} ${count === 1 ? noun : plural(noun)}`;
}

function plural(noun: string): string {
  return noun.endsWith("s") ? `${noun}es` : `${noun}s`;
}
