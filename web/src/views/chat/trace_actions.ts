/** What can be done with an answer whose tokens are known: show its passes, race it, save it. */
import { openChat } from "../../chat/chats.ts";
import type { Message } from "../../chat/model.ts";
import { bodyOf } from "../../chat/request.ts";
import { pathTo } from "../../chat/tree.ts";
import { traceOf } from "../../paint/traces.ts";
import { toast } from "../../ui/toast.tsx";
import { openRace } from "../race/prepared.ts";
import type { RaceMessage } from "../race/question.ts";

function messagesBefore(message: Message): RaceMessage[] {
  const { sent } = message.answer!;
  return bodyOf(pathTo(openChat.value, message.parent), sent, null)["messages"] as RaceMessage[];
}

/** Show the view of races with the question of an answer. */
export function raceAnswer(message: Message): void {
  const { sent } = message.answer!;
  openRace({
    messages: messagesBefore(message),
    fields: { ...sent.fields, ...(sent.model === null ? {} : { model: sent.model }) },
  });
}

/** Save an answer as one HTML file with its paint. */
export async function savePainted(message: Message): Promise<void> {
  const answer = message.answer!;
  const traced = traceOf(message);
  if (traced === null) return;
  try {
    const { saveAnswer } = await import("../../export/save.ts");
    saveAnswer(messagesBefore(message), answer, traced.trace);
  } catch {
    toast({ text: "This part of the page could not be loaded. Load the page again." });
  }
}
