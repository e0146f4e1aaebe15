/** One request at a time: only the latest question counts, and waits until it stays the same for a moment. */

export interface Outcome<Question, Answer> {
  question: Question;
  answer?: Answer;
  error?: unknown;
}

/**
 * Sends the latest of many questions.
 *
 * A question waits for `delay` milliseconds for another one. An answer that is on its way for an
 * older question is cancelled.
 */
export class Latest<Question, Answer> {
  #timer: ReturnType<typeof setTimeout> | undefined;
  #running: AbortController | null = null;

  constructor(
    private readonly send: (question: Question, signal: AbortSignal) => Promise<Answer>,
    private readonly done: (outcome: Outcome<Question, Answer>) => void,
    private readonly delay: number,
  ) {}

  ask(question: Question, delay = this.delay): void {
    this.cancel();
    this.#timer = setTimeout(() => void this.#run(question), delay);
  }

  /** Forget the latest question. */
  cancel(): void {
    clearTimeout(this.#timer);
    this.#running?.abort();
    this.#running = null;
  }

  async #run(question: Question): Promise<void> {
    const controller = new AbortController();
    this.#running = controller;
    const outcome = await this.send(question, controller.signal).then(
      (answer) => ({ question, answer }),
      (error: unknown) => ({ question, error }),
    );
    if (this.#running !== controller) return; // another question has replaced it
    this.#running = null;
    this.done(outcome);
  }
}
