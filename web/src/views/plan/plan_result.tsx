/** A plan: what lives where, the change that would help most, what the figures rest on, and copies. */
import type { JSX } from "preact";

import { Button } from "../../ui/button.tsx";
import { copyText } from "../../ui/copy.ts";
import { sizeText } from "../../units.ts";
import type { PlanAnswer } from "./answer.ts";
import { type Bar, barSentence, barsOf, fillText, isEnlarged, placed, usedBytes } from "./bars.ts";
import { canTry, gainWords, withGain } from "./gains.ts";
import { commandOf, slidersFor } from "./sliders.ts";
import { asked, figures, isComputing, machineKind } from "./state.ts";

export function PlanResult({ plan }: { plan: PlanAnswer }): JSX.Element {
  return (
    <div class={isComputing.value ? "plan-parts-of old" : "plan-parts-of"}>
      <Gains plan={plan} />
      {barsOf(plan).map((bar) => (
        <BarView key={bar.name} bar={bar} />
      ))}
      <Assumptions plan={plan} />
      <Copies plan={plan} />
    </div>
  );
}

function Gains({ plan }: { plan: PlanAnswer }): JSX.Element {
  const [best, ...others] = plan.gains.map(gainWords);
  if (best === undefined) return <p class="gain">No single change would make it much faster.</p>;
  const names = slidersFor(machineKind.value, plan).map(({ name }) => name);
  return (
    <div class="gain">
      <p>
        <span class="muted">What would help most</span>
        <strong>{best.text}</strong>
        <span>{best.effect}</span>
      </p>
      {canTry(best, names) && (
        <Button onClick={() => (asked.value = withGain(asked.value, best))} aria-label={`Try it: ${best.text}`}>
          Try it
        </Button>
      )}
      {others.length > 0 && (
        <details>
          <summary>Other changes</summary>
          <ul>
            {others.map(({ text, effect }) => (
              <li key={text}>
                {text}: {effect}
              </li>
            ))}
          </ul>
        </details>
      )}
    </div>
  );
}

function BarView({ bar }: { bar: Bar }): JSX.Element {
  return (
    <div class="memory">
      <div class="memory-head">
        <h2>{bar.name}</h2>
        <p>{fillText(bar)}</p>
      </div>
      <svg class="stacked" role="img" aria-label={barSentence(bar)}>
        <rect class="free" width="100%" height="100%" />
        {placed(bar).map(({ part, start, width }) => (
          <rect key={part.name} class={`part kind-${part.kind}`} x={`${start.toFixed(3)}%`} width={`${width.toFixed(3)}%`} height="100%">
            <title>{`${part.name}: ${sizeText(part.nbytes)}`}</title>
          </rect>
        ))}
      </svg>
      {isEnlarged(bar) && <p class="small muted">{enlargedText(bar)}</p>}
      <ul class="memory-legend">
        {bar.parts.map(({ kind, name, nbytes, note }) => (
          <li key={name}>
            <span class={`swatch kind-${kind}`} aria-hidden="true" />
            <span class="part-name">{name}</span>
            <span class="part-size">{sizeText(nbytes)}</span>
            <span class="part-note">{note}</span>
          </li>
        ))}
      </ul>
      {bar.remark && <p class="small muted">{bar.remark}</p>}
    </div>
  );
}

/** Say that a bar does not show the memory that is free. */
function enlargedText(bar: Bar): string {
  const percent = (100 * usedBytes(bar)) / bar.capacity!;
  return `The bar shows what is used, ${percent < 1 ? "less than 1" : Math.round(percent)} % of the memory. The rest is free.`;
}

function Assumptions({ plan }: { plan: PlanAnswer }): JSX.Element {
  return (
    <details class="assumptions">
      <summary>What the figures rest on</summary>
      <table>
        <thead class="only-read">
          <tr>
            <th>What</th>
            <th>Figure</th>
            <th>Source</th>
          </tr>
        </thead>
        <tbody>
          {plan.assumptions.map(({ what, figure, source }) => (
            <tr key={what}>
              <th scope="row">{what}</th>
              <td>{figure}</td>
              <td class="muted">{source}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <p class="small muted">
        Planned from the model's {plan.has_weights ? "checkpoint" : "config.json alone"} ({plan.model_type}).
      </p>
    </details>
  );
}

function Copies({ plan }: { plan: PlanAnswer }): JSX.Element {
  const command = commandOf(plan.model_id, figures.value);
  return (
    <section class="copies" aria-label="Copy">
      <div class="row">
        <Button icon="copy" onClick={() => void copyText(command, "The command was copied.")}>
          Copy as command
        </Button>
        <Button icon="copy" onClick={() => void copyText(plan.file, "The model file was copied.")}>
          Copy model file (YAML)
        </Button>
      </div>
      <details>
        <summary>Show both</summary>
        <pre tabIndex={0} aria-label="Command">{command}</pre>
        <pre tabIndex={0} aria-label="Model file">{plan.file}</pre>
      </details>
    </section>
  );
}
