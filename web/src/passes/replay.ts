/** Which pass is shown, and the replay, which shows one after the other at the pace at which they came. */
import { useEffect, useState } from "preact/hooks";

import { type PassView, secondsOf } from "./figures.ts";

/** How much slower than it was an answer is replayed. */
export const SLOWER = [1, 4, 16, 64] as const;

const SHORTEST_MS = 30;

export interface Replay {
  /** The index of the pass that is shown; -1 where there is none. */
  current: number;
  isPlaying: boolean;
  /** Whether the latest pass is shown, whichever that is. */
  isAtEnd: boolean;
  slower: number;
  setSlower: (slower: number) => void;
  choose: (index: number) => void;
  /** Play or pause; from the end, play from the beginning. */
  play: () => void;
}

export function useReplay(views: readonly PassView[], isStreaming: boolean): Replay {
  const [chosen, setChosen] = useState<number | null>(null); // null: the last one
  const [isPlaying, setPlaying] = useState(false);
  const [slower, setSlower] = useState<number>(4);
  const last = views.length - 1;
  const current = Math.min(chosen ?? last, last);
  useEffect(() => {
    if (!isPlaying || current < 0) return undefined;
    if (current >= last && !isStreaming) {
      setPlaying(false);
      return undefined;
    }
    const next = views[current + 1];
    if (next === undefined) return undefined; // it is still to come
    const wait = Math.max(SHORTEST_MS, 1000 * secondsOf(next.pass) * slower);
    const timer = setTimeout(() => setChosen(current + 1), wait);
    return () => clearTimeout(timer);
  }, [isPlaying, current, last, slower, isStreaming]);
  return {
    current,
    isPlaying,
    isAtEnd: chosen === null,
    slower,
    setSlower,
    choose: (index) => {
      setPlaying(false);
      setChosen(index >= last ? null : Math.max(0, index));
    },
    play: () => {
      if (!isPlaying && current >= last) setChosen(0);
      setPlaying(!isPlaying);
    },
  };
}
