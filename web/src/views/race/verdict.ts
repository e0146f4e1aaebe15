/** Whether two answers are identical. */
export interface Verdict {
  isSame: boolean;
  text: string;
}

/** Compare the tokens of two answers. */
export function verdictOf(first: readonly number[], second: readonly number[]): Verdict {
  const most = Math.max(first.length, second.length);
  let same = 0;
  while (same < most && first[same] === second[same]) same++;
  const text = `identical: ${same} of ${most} tokens`;
  if (same === most) return { isSame: true, text };
  return { isSame: false, text: `${text}; they differ from there on, which only numerics: fast allows` };
}
