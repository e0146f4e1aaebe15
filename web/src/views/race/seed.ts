/** The seed of a race as it is typed. */

const MOST_DIGITS = 15; // which numbers of the page hold exactly

/** Return what is wrong with a seed, null if nothing is. */
export function seedProblem(text: string): string | null {
  const typed = text.trim();
  if (typed === "") return "Both answers need a seed: type a whole number, or draw a new one.";
  if (/^-\d+$/.test(typed)) return "A seed is not negative: the least is 0.";
  if (!/^\d+$/.test(typed)) return "A seed is a whole number, such as 7.";
  if (typed.replace(/^0+/, "").length > MOST_DIGITS) return `A seed has at most ${MOST_DIGITS} digits here.`;
  return null;
}
