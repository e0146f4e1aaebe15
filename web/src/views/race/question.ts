/** The question of a race, as a text and as messages. */

/** A message of a request. */
export type RaceMessage = Record<string, unknown>;

/** Return the text of the last message, which the user may change; null if it is no text. */
export function questionOf(messages: readonly RaceMessage[]): string | null {
  const content = messages.at(-1)?.["content"];
  return typeof content === "string" ? content : null;
}

/** Return the messages with a question as the last one, which stays as it was if its text did. */
export function withQuestion(messages: readonly RaceMessage[], question: string): RaceMessage[] {
  if (questionOf(messages) === question) return [...messages];
  return [...messages.slice(0, -1), { role: "user", content: question }];
}
