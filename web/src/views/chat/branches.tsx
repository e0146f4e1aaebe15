/** The switch between a message and its alternatives. */
import type { JSX } from "preact";

import { change, openChat } from "../../chat/chats.ts";
import type { Message } from "../../chat/model.ts";
import { alternatives, choose } from "../../chat/tree.ts";
import { announce } from "../../ui/announce.tsx";
import { IconButton } from "../../ui/button.tsx";

export function Branches({ message }: { message: Message }): JSX.Element | null {
  const all = alternatives(openChat.value, message.parent);
  if (all.length < 2) return null;
  const at = all.findIndex(({ id }) => id === message.id);
  const show = (index: number): void => {
    const other = all[index];
    if (other === undefined) return;
    void change(choose(openChat.value, other.id));
    announce(`Version ${index + 1} of ${all.length} is shown.`);
  };
  return (
    <div class="branches" role="group" aria-label="Versions">
      <IconButton icon="left" name="Previous version" disabled={at === 0} onClick={() => show(at - 1)} />
      <span>
        {at + 1}/{all.length}
      </span>
      <IconButton icon="right" name="Next version" disabled={at === all.length - 1} onClick={() => show(at + 1)} />
    </div>
  );
}
