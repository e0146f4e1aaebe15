/** The messages of the open chat. The page stays at the end while the reader is there. */
import { effect, useComputed } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";

import { change, openChat } from "../../chat/chats.ts";
import { running } from "../../chat/generation.ts";
import type { Message } from "../../chat/model.ts";
import { pathOf } from "../../chat/tree.ts";
import { Button, IconButton } from "../../ui/button.tsx";
import { AnswerView } from "./answer_view.tsx";
import { UserMessage } from "./user_message.tsx";
import { Welcome } from "./welcome.tsx";

const NEAR_END = 60; // pixels

export function Thread(): JSX.Element {
  const path = useComputed(() => pathOf(openChat.value)).value;
  const scroller = useRef<HTMLDivElement>(null);
  const content = useRef<HTMLDivElement>(null);
  const toEnd = useRef<HTMLDivElement>(null);
  useStayAtEnd(scroller, content, toEnd);
  const { skipped } = openChat.value;
  return (
    <div class="thread" ref={scroller}>
      <div class="messages" ref={content}>
        {path.length === 0 ? <Welcome /> : <h1 class="only-read">{openChat.value.title}</h1>}
        {path.map((message, index) => (
          <div key={message.id}>
            {skipped > 0 && index === skipped && <Skipped />}
            <MessageView message={message} isLast={index === path.length - 1} />
          </div>
        ))}
      </div>
      <div class="to-end" ref={toEnd} hidden>
        <IconButton
          icon="chevron"
          name="To the end"
          onClick={() => scroller.current?.scrollTo({ top: scroller.current.scrollHeight })}
        />
      </div>
    </div>
  );
}

function MessageView({ message, isLast }: { message: Message; isLast: boolean }): JSX.Element | null {
  if (message.role === "user") return <UserMessage message={message} />;
  if (message.role === "assistant") return <AnswerView message={message} isLast={isLast} />;
  return null; // a tool's result is shown with the call
}

function Skipped(): JSX.Element {
  return (
    <div class="skipped" role="note">
      <span>The model does not read the messages above.</span>
      <Button kind="quiet" onClick={() => void change({ ...openChat.value, skipped: 0 })}>
        Send all again
      </Button>
    </div>
  );
}

type Ref<T> = { current: T | null };

/** Scroll down as the content grows, unless the reader has scrolled up. */
function useStayAtEnd(scroller: Ref<HTMLElement>, content: Ref<HTMLElement>, toEnd: Ref<HTMLElement>): void {
  useEffect(() => {
    const element = scroller.current;
    if (element === null || content.current === null) return undefined;
    let isAtEnd = true;
    const jump = (): void => element.scrollTo({ top: element.scrollHeight });
    let top = 0;
    const onScroll = (): void => {
      const isNear = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR_END;
      // growing content leaves the reader far from the end too: only the way up is a wish
      if (isNear) isAtEnd = true;
      else if (element.scrollTop < top) isAtEnd = false;
      top = element.scrollTop;
      if (toEnd.current) toEnd.current.hidden = isAtEnd;
    };
    const observer = new ResizeObserver(() => (isAtEnd ? jump() : onScroll()));
    observer.observe(content.current);
    observer.observe(element);
    element.addEventListener("scroll", onScroll, { passive: true });
    let chatId = "";
    let count = 0;
    const stop = effect(() => {
      const isOther = openChat.value.id !== chatId;
      const isStarted = running.value.size > count;
      chatId = openChat.value.id;
      count = running.value.size;
      if (isOther || isStarted) {
        isAtEnd = true;
        requestAnimationFrame(jump);
      }
    });
    return () => {
      observer.disconnect();
      element.removeEventListener("scroll", onScroll);
      stop();
    };
  }, []);
}
