/** The speeds that a plan expects. */
import type { JSX } from "preact";

import { countText, figureText, secondsText, several } from "../../units.ts";
import type { Forecast, PlanAnswer } from "./answer.ts";
import { isComputing, problem } from "./state.ts";

export function Speeds({ plan }: { plan: PlanAnswer | null }): JSX.Element {
  const forecast = plan?.forecast;
  const isOld = isComputing.value || problem.value !== null;
  return (
    <section class={isOld ? "plan-speeds old" : "plan-speeds"} aria-label="Speed to expect">
      <dl>
        <div>
          <dt>One user</dt>
          <dd>
            <strong data-testid="speed">{forecast ? figureText(forecast.tokens_per_second) : "–"}</strong> tokens/s
          </dd>
        </div>
        <div>
          <dt>{forecast ? usersText(forecast) : "Several users"}</dt>
          <dd>
            <strong>{forecast ? figureText(forecast.tokens_per_second_all) : "–"}</strong> tokens/s
          </dd>
        </div>
        <div>
          <dt>First token</dt>
          <dd>
            <strong>{forecast ? secondsText(forecast.first_token_seconds) : "–"}</strong>
          </dd>
        </div>
      </dl>
      {forecast && forecast.users_asked > forecast.users && <p class="small">{waitingText(forecast)}</p>}
      <p class="small muted">{isComputing.value ? computingText(plan) : forecast ? passText(plan) : ""}</p>
    </section>
  );
}

function usersText({ users, users_asked: asked }: Forecast): string {
  return asked > users ? `${countText(users)} of ${several(asked, "user")}` : several(users, "user");
}

function waitingText({ users, users_asked: asked }: Forecast): string {
  const others = asked - users;
  return `${several(users, "answer")} ${users === 1 ? "is" : "are"} written at once; ${countText(others)} more ${others === 1 ? "user waits" : "users wait"} for their turn.`;
}

function computingText(plan: PlanAnswer | null): string {
  return plan === null ? "Computing … The first plan takes some seconds." : "Computing …";
}

function passText({ forecast, draft }: PlanAnswer): string {
  const { pass_seconds: pass, link_seconds: link, draft_seconds: drafting, tokens_per_pass: tokens } = forecast;
  const weights = link > 0 ? ` (${secondsText(link)} for the weights to arrive)` : "";
  const own = draft === "none" || drafting < 0.0005 ? "" : `; drafting before it takes ${secondsText(drafting)}`;
  return `A pass brings ${figureText(tokens)} tokens and takes ${secondsText(pass)}${weights}${own}.`;
}
