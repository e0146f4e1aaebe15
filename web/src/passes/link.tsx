/** How fast weights travel now, against the measured limit, and what passes wait for. */
import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";

import { getStream } from "../api/client.ts";
import type { EngineStatus, ServerStatus } from "../api/types.ts";
import { Meter } from "../ui/meter.tsx";
import { figureText } from "../units.ts";

const AGAIN_MS = 3000;

/** Return the figures of the engine, once a second while the component is shown. */
export function useEngine(): EngineStatus | null {
  const [engine, setEngine] = useState<EngineStatus | null>(null);
  useEffect(() => {
    const leaving = new AbortController();
    void watch(leaving.signal, setEngine);
    return () => leaving.abort();
  }, []);
  return engine;
}

async function watch(signal: AbortSignal, show: (engine: EngineStatus | null) => void): Promise<void> {
  while (!signal.aborted) {
    try {
      for await (const item of getStream("v1/status?watch", { signal })) {
        if (item.kind === "data") show((item.data as ServerStatus).engine);
      }
    } catch {
      show(null); // the chat says what is wrong with the server
    }
    if (!signal.aborted) await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

const CAUSES = { copy: "Waits for weights", draft: "Waits for the draft", host: "Waits for the host" } as const;

export function Link({ engine }: { engine: EngineStatus | null }): JSX.Element {
  if (engine === null) return <p class="muted">No model is running.</p>;
  const { link_gbps, tokens_per_second, tokens_per_pass, stall_seconds, seconds } = engine.recent;
  const limit = engine.link_limit_gbps;
  return (
    <div class="link">
      <p class="muted">
        {figureText(tokens_per_second)} tokens/s, {figureText(tokens_per_pass)} a pass, over the last seconds
      </p>
      {limit > 0 ? (
        <Gauge
          name="Weights over the link"
          value={link_gbps}
          most={limit}
          text={`${figureText(link_gbps)} of ${figureText(limit)} GB/s`}
        />
      ) : (
        <p class="muted">No weights travel: all are on the device.</p>
      )}
      {Object.entries(CAUSES).map(([cause, name]) => {
        const stalled = stall_seconds[cause as keyof typeof CAUSES];
        const share = seconds > 0 ? Math.min(1, stalled / seconds) : 0;
        return <Gauge key={cause} name={name} value={share} most={1} text={`${Math.round(100 * share)} % of the time`} />;
      })}
    </div>
  );
}

/** A figure against its most, as words above a bar. All bars are as wide as the panel. */
function Gauge({ name, value, most, text }: { name: string; value: number; most: number; text: string }): JSX.Element {
  const share = Math.min(1, most > 0 ? value / most : 0);
  return (
    <div class="gauge" role="meter" aria-label={name} aria-valuemin={0} aria-valuemax={most} aria-valuenow={value} aria-valuetext={text}>
      <span>{name}</span>
      <span class="amount">{text}</span>
      <Meter share={share} />
    </div>
  );
}
