/** Short notices below the bar, which leave by themselves and may offer one action, such as Undo. */
import { signal } from "@preact/signals";
import type { JSX } from "preact";

import { announce } from "./announce.tsx";
import { Button, IconButton } from "./button.tsx";

export interface Toast {
  text: string;
  action?: { name: string; run: () => void };
}

interface Shown extends Toast {
  id: number;
}

const SHOWN_MS = 8000;

const toasts = signal<Shown[]>([]);
const timers = new Map<number, ReturnType<typeof setTimeout>>();
let lastId = 0;

/** Show a notice for some seconds, longer while the pointer or the focus is on it. */
export function toast(notice: Toast): void {
  const id = ++lastId;
  toasts.value = [...toasts.value, { ...notice, id }];
  announce(notice.action ? `${notice.text} ${notice.action.name} is offered.` : notice.text);
  leaveLater(id);
}

function leaveLater(id: number): void {
  timers.set(id, setTimeout(() => remove(id), SHOWN_MS));
}

function stay(id: number): void {
  clearTimeout(timers.get(id));
}

function remove(id: number): void {
  stay(id);
  timers.delete(id);
  toasts.value = toasts.value.filter((shown) => shown.id !== id);
}

export function Toasts(): JSX.Element {
  return (
    <div class="toasts">
      {toasts.value.map(({ id, text, action }) => (
        <div
          key={id}
          class="toast"
          role="group"
          aria-label="Notice"
          onPointerEnter={() => stay(id)}
          onPointerLeave={() => leaveLater(id)}
          onFocusIn={() => stay(id)}
          onFocusOut={() => leaveLater(id)}
        >
          <span>{text}</span>
          {action && (
            <Button
              kind="quiet"
              onClick={() => {
                remove(id);
                action.run();
              }}
            >
              {action.name}
            </Button>
          )}
          <IconButton icon="close" name="Dismiss" onClick={() => remove(id)} />
        </div>
      ))}
    </div>
  );
}
