/** The other servers of the same model, which requests may run on. */
import type { JSX } from "preact";

import type { PeerStatus } from "../../api/types.ts";
import { peerFigures, peerState } from "./words.ts";

export function Peers({ peers }: { peers: PeerStatus[] }): JSX.Element | null {
  if (peers.length === 0) return null;
  return (
    <section aria-label="Other servers">
      <h2>Other servers</h2>
      <ul class="model-list">
        {peers.map((peer) => (
          <Peer key={peer.url} peer={peer} />
        ))}
      </ul>
    </section>
  );
}

function Peer({ peer }: { peer: PeerStatus }): JSX.Element {
  const { text, tone } = peerState(peer);
  return (
    <li class="model-card" data-testid={`peer ${peer.url}`}>
      <div class="model-head">
        <h3>{peer.url}</h3>
        <p class={`state ${tone}`}>{text}</p>
      </div>
      {peer.note && <p class="muted small">{peer.note}</p>}
      {peer.state === "ready" && (
        <dl class="live" aria-label="The last seconds">
          {peerFigures(peer).map(({ name, text: figure }) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{figure}</dd>
            </div>
          ))}
        </dl>
      )}
    </li>
  );
}
