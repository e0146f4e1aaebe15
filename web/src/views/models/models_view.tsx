/** The view of models: what is in memory and how it does, and loading and unloading. */
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";

import type { ModelStatus, ServerStatus } from "../../api/types.ts";
import { serverStatus, statusProblem, useServerStatus, watchAgain } from "../../server_status.ts";
import { announce } from "../../ui/announce.tsx";
import { Button } from "../../ui/button.tsx";
import { ModelCard } from "./model_card.tsx";
import { Peers } from "./peers.tsx";
import { changes, summary } from "./words.ts";

export function ModelsView(): JSX.Element {
  useServerStatus();
  const status = serverStatus.value;
  useAnnouncements(status);
  return (
    <main class="view page">
      <header class="page-head">
        <h1>Models</h1>
        <p class="muted">One model is in memory at a time. A request for another one loads that.</p>
      </header>
      <Problem />
      {status !== null && <List status={status} />}
      {status === null && statusProblem.value === null && <p class="muted">Asking the server …</p>}
    </main>
  );
}

function Problem(): JSX.Element | null {
  const problem = statusProblem.value;
  if (problem === null) return null;
  return (
    <div class="problem" role="group" aria-label="Problem">
      <strong>{problem.text}</strong>
      {serverStatus.value && <p>What is shown below may have changed since.</p>}
      {!problem.isPassing && (
        <div class="row">
          <Button kind="danger" onClick={watchAgain}>
            Try again
          </Button>
        </div>
      )}
    </div>
  );
}

function List({ status }: { status: ServerStatus }): JSX.Element {
  if (status.models.length === 0) {
    return (
      <p>
        The server knows no model. Start it with one, <code>understudy serve owner/name</code>, or write a file into{" "}
        <code>configs/models/</code>.
      </p>
    );
  }
  return (
    <>
      {status.state === "stopping" && <p class="problem">The server is shutting down.</p>}
      <p class="model-summary">{summary(status)}</p>
      <ul class="model-list">
        {inOrder(status.models).map((model) => (
          <ModelCard key={model.id} model={model} status={status} />
        ))}
      </ul>
      <Peers peers={status.peers} />
    </>
  );
}

/** Return models with the default first. The order stays, so that nothing moves away under a pointer. */
function inOrder(models: ModelStatus[]): ModelStatus[] {
  return [...models].sort((a, b) => Number(b.default) - Number(a.default));
}

/** Have a screen reader say what changes. */
function useAnnouncements(status: ServerStatus | null): void {
  const before = useRef<ServerStatus | null>(null);
  useEffect(() => {
    if (before.current !== null && status !== null) {
      const sentences = changes(before.current, status);
      if (sentences.length) announce(sentences.join(" "));
    }
    before.current = status;
  }, [status]);
  const problem = statusProblem.value?.text;
  useEffect(() => {
    if (problem !== undefined) announce(problem);
  }, [problem]);
}
