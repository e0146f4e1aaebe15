"""Many replicas of a model, simulated: where requests are placed decides when they begin.

The replicas run pass by pass with the speeds of a plan for a 7 B model on a card that lends it
8 GB. Compared are `cluster.placement`, which learns of the replicas by reports that are some
seconds old, the replica with the fewest requests, and a hash of the session. The last two know at
once which requests have ended. Replicas die and come back; in a rolling upgrade, streams go on only
on replicas of the version that began them.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from statistics import mean

from benchmarks.cluster_sessions import Traffic, agents, chats
from benchmarks.cluster_traffic import Outcome, Policy, Scenario, simulate
from benchmarks.command import make_parser
from benchmarks.simulated_replicas import Replica, Speeds, Turn
from cluster.placement import Placed, Placement, Prompt

# Qwen2.5-7B-Instruct's shape.
HIDDEN_SIZE, NUM_LAYERS, CONTEXT_LENGTH = 3584, 28, 32768
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 18944,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": CONTEXT_LENGTH,
    "vocab_size": 152064,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
GIB = 1 << 30
# An RTX 4090 that lends 8 GB to the model; what it expands does not matter here.
DEVICE = (1000.0, 110.0)  # GB/s of its memory, TFLOP/s of dense products
SEQUENCES = 16
SCENARIOS: dict[str, tuple[Traffic, Scenario]] = {
    "100 replicas, agents, 7 sessions/s": (agents(7.0), Scenario(100, 600.0, 200.0)),
    "100 replicas, agents, 4 sessions/s": (agents(4.0), Scenario(100, 600.0, 200.0)),
    "100 replicas, chats, 10 sessions/s": (chats(10.0), Scenario(100, 500.0, 200.0)),
    "100 replicas, agents, 7 sessions/s, reports every 4 s": (
        agents(7.0),
        Scenario(100, 600.0, 200.0, report_seconds=4.0),
    ),
    "100 replicas, agents, 7 sessions/s, a rolling upgrade": (
        agents(7.0),
        Scenario(100, 1200.0, 200.0, upgrade_at=250.0),
    ),
    "1,000 replicas, agents, 70 sessions/s": (agents(70.0), Scenario(1000, 200.0, 100.0)),
}
HEADER = (
    "placement",
    "requests",
    "first token p50 (s)",
    "p90 (s)",
    "p99 (s)",
    "prompt tokens stored",
    "later turns that returned",
    "tokens/s of an answer",
    "streams moved",
    "their pause p50 (s)",
    "lost",
    "a choice p50 (µs)",
)


def plan_speeds() -> Speeds:
    """Return the speeds that the plan of a 7 B model on a card of 8 GB has."""
    from engine.planning.assumed import CARD, pass_times
    from engine.planning.forecast import HOST_SECONDS, ROWS_PER_LEVEL
    from engine.planning.preview import WhatIf, preview
    from engine.spec import DraftSpec, ModelSpec, StreamSpec, TargetSpec

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(CONFIG))
        spec = ModelSpec(
            "7b",
            TargetSpec(folder),
            DraftSpec("subspec"),
            stream=StreamSpec(coding="none"),
            max_sequences=SEQUENCES,
        )
        scheme = preview(spec, WhatIf(device_memory=8 * GIB, ram=64 * GIB)).scheme
    plan, forecast = scheme.plan, scheme.forecast
    card = replace(CARD, gbps=DEVICE[0], tflops=DEVICE[1])
    attention = 4 * HIDDEN_SIZE * NUM_LAYERS
    return Speeds(
        link_seconds=forecast.link_seconds,
        host_seconds=HOST_SECONDS,
        rows=pass_times(scheme.demand, card),
        pair_seconds=attention / (card.tflops * 1e12),
        tree_rows=1 + ROWS_PER_LEVEL * forecast.depth,
        tokens_per_pass=forecast.tokens_per_pass,
        max_sequences=plan.max_sequences,
        max_rows=plan.max_rows,
        pages=plan.num_pages + plan.host_pages,
        longest=CONTEXT_LENGTH,
    )


class Estimated:
    """The earliest first token, as `cluster.placement` estimates it from reports."""

    def __init__(self) -> None:
        self._placement = Placement()
        self._placed: dict[Turn, Placed] = {}

    def choose(self, turn: Turn, names: Sequence[int], now: float) -> int | None:
        tokens = turn.session.tokens
        prompt = Prompt(tokens, turn.session.pages(tokens), tokens + turn.tokens_left)
        allowed = set(names)
        placed = self._placement.place(prompt, now, lambda name: int(name) in allowed)
        if placed is None:
            return None
        self._placed[turn] = placed
        return int(placed.replica)

    def leave(self, turn: Turn) -> None:
        if (placed := self._placed.pop(turn, None)) is not None:
            self._placement.end(placed)

    def report(self, name: int, replica: Replica, now: float) -> None:
        self._placement.report(str(name), replica.load(), replica.take_change(), now)

    def forget(self, name: int) -> None:
        self._placement.add(str(name))


class _WithoutReports:
    """A policy that knows only which requests it has placed."""

    def __init__(self) -> None:
        self._at: dict[Turn, int] = {}
        self._requests: dict[int, int] = {}

    def leave(self, turn: Turn) -> None:
        if (name := self._at.pop(turn, None)) is not None:
            self._requests[name] -= 1

    def report(self, name: int, replica: Replica, now: float) -> None:
        """Ignore the report."""

    def forget(self, name: int) -> None:
        """Ignore the death."""

    def _note(self, turn: Turn, name: int) -> int:
        self._at[turn] = name
        self._requests[name] = self._requests.get(name, 0) + 1
        return name


class LeastLoaded(_WithoutReports):
    """The replica with the fewest requests."""

    def choose(self, turn: Turn, names: Sequence[int], now: float) -> int | None:
        return self._note(turn, min(names, key=lambda name: self._requests.get(name, 0)))


class SessionHash(_WithoutReports):
    """The replica that a rendezvous hash gives to the session, among those that are up."""

    def choose(self, turn: Turn, names: Sequence[int], now: float) -> int | None:
        key = blake2b(turn.session.plan.number.to_bytes(8, "big"), digest_size=8)

        def rank(name: int) -> bytes:
            own = key.copy()
            own.update(name.to_bytes(4, "big"))
            return own.digest()

        return self._note(turn, min(names, key=rank))


POLICIES: dict[str, Callable[[], Policy]] = {
    "earliest first token": Estimated,
    "fewest requests": LeastLoaded,
    "hash of the session": SessionHash,
}


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of the values is below; NaN without values."""
    return sorted(values)[int(len(values) * share)] if values else float("nan")


def figures(name: str, outcome: Outcome) -> dict[str, str]:
    """Return the row of a table."""
    first = [percentile(outcome.first_token, share) for share in (0.5, 0.9, 0.99)]
    cells = (
        name,
        f"{len(outcome.first_token):,}",
        *(f"{seconds:.2f}" for seconds in first),
        f"{outcome.cached_tokens / max(1, outcome.prompt_tokens):.0%}",
        f"{outcome.returned / max(1, outcome.later_turns):.0%}",
        f"{mean(outcome.rates):.1f}" if outcome.rates else "-",
        f"{outcome.moved:,}",
        f"{percentile(outcome.pauses, 0.5):.2f}" if outcome.pauses else "-",
        str(outcome.lost),
        f"{1e6 * percentile(outcome.choice_seconds, 0.5):.0f}",
    )
    return dict(zip(HEADER, cells, strict=True))


def main() -> None:
    """Simulate the scenarios and print a table of each."""
    parser = make_parser(__doc__, takes_model=False, takes_rounds=False)
    parser.add_argument("--only", default="", help="scenarios whose names contain this")
    options = parser.parse_args()
    speeds = plan_speeds()
    found = {}
    for title, (traffic, scenario) in SCENARIOS.items():
        if options.only not in title:
            continue
        rows = [
            figures(name, simulate(scenario, traffic.sessions(), speeds, policy()))
            for name, policy in POLICIES.items()
        ]
        found[title] = rows
        if not options.json:
            print(f"\n{title}\n\n{table(rows)}", flush=True)
    if options.json:
        print(json.dumps(found))


def table(rows: Sequence[dict[str, str]]) -> str:
    """Return rows as a table in Markdown."""
    lines = [HEADER, ["---"] * len(HEADER), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
