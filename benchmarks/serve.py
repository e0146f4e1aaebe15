"""How much of the engine's tokens/s reaches clients that stream over HTTP.

    python -m benchmarks.serve [--json]

The engine alone, in this process, and the real server with its engine process, asked over
loopback by clients in this process, answer the same requests in turn, all asked at once. A
stream's rate is counted from its first tokens to its last, and the streams' rates are added up.
Texts are equal, so rates are compared in characters and told in tokens.

Two engines: the demo's model behind a link that paces its passes, as in service; and one without
a model, which emits at a steady beat, for the front end's own limit.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.command import parser, show
from benchmarks.http_streams import Stream, ask_all, front_end, rate
from benchmarks.paced_engine import Beat, PacedEngine, main as paced_main
from benchmarks.report_format import Bar, Figures, Plot, Table
from benchmarks.runs import (
    DEMO,
    GREEDY,
    Run,
    chat_prompts,
    drive,
    machine,
    ram_spec,
    request,
    session,
)
from engine.messages import Generate, Tokens
from engine.process.client import EngineClient
from engine.spec import DraftSpec, ModelSpec

CLIENTS = (1, 8, 32, 64)
JUDGED = 8
AT_LEAST = 0.98
LINK_GBPS = 0.04  # 8 MB a pass take 0.2 s: longer than the compute of eight trees
BEAT = Beat(seconds=0.1, burst=8)  # 80 tokens a second for each stream
PACED_TOKENS = 48
MODEL_TOKENS = 56
FIRST_PROMPT = 50  # a token id


@dataclass(frozen=True)
class Rates:
    """Of all streams together."""

    alone: float  # tokens a second
    served: float

    @property
    def share(self) -> float:
        return self.served / self.alone


def main() -> None:
    arguments = parser(__doc__, takes_model=False)
    arguments.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    arguments.add_argument("--tokens", type=int, default=PACED_TOKENS, help="of a paced answer")
    arguments.add_argument("--model-tokens", type=int, default=MODEL_TOKENS)
    options = arguments.parse_args()
    figures = measure(
        options.clients,
        rounds=options.rounds,
        tokens=options.tokens,
        model_tokens=options.model_tokens,
    )
    show(figures, options)


def measure(clients: Sequence[int], *, rounds: int, tokens: int, model_tokens: int) -> Figures:
    """The model's engine with `JUDGED` clients, the paced one with each number of them."""
    model = model_rates(rounds, model_tokens)
    paced = paced_rates(clients, rounds, tokens)
    shares = {number: _median(rates, "share") for number, rates in paced.items()}
    lines = [["the demo's model", JUDGED, *_cells(model)]]
    lines += [["steady beat", number, *_cells(rates)] for number, rates in paced.items()]
    judged = {"the demo's model": _median(model, "share")}
    if JUDGED in shares:
        judged["steady beat"] = shares[JUDGED]
    return Figures(
        name="serve",
        title="The front end over the engine alone",
        values={
            "link_gbps": LINK_GBPS,
            "beat_ms": BEAT.seconds * 1e3,
            "tokens_a_beat_and_stream": BEAT.burst,
            "rounds": rounds,
        },
        tables=[
            Table(
                "Medians of the rounds",
                ["engine", "clients", "engine alone tokens/s", "at the clients", "share"],
                lines,
            )
        ],
        bars=[
            Bar(f"share of tokens/s that reaches {JUDGED} clients, {name}", share, ">=", AT_LEAST)
            for name, share in judged.items()
        ],
        plots=[
            Plot(
                "serve",
                "streaming clients",
                "share of the engine's tokens/s",
                {"steady beat": [(float(n), share) for n, share in shares.items()]},
                log_x=True,
            )
        ],
        machine=machine(),
    )


def model_rates(rounds: int, tokens: int) -> list[Rates]:
    """The demo's model, here and behind the server."""
    spec = _spec("demo", JUDGED)
    params = replace(GREEDY, max_tokens=tokens)
    prompts = chat_prompts("held_out")[:JUDGED]
    requests = [request(f"{n}", prompt, params) for n, prompt in enumerate(prompts)]
    with session(spec) as alone, front_end(spec, EngineClient) as port:
        drive(alone, requests)
        ask_all(port, requests)
        return [
            _rates(_streams(drive(alone, requests)), ask_all(port, requests)) for _ in range(rounds)
        ]


def paced_rates(clients: Sequence[int], rounds: int, tokens: int) -> dict[int, list[Rates]]:
    """The engine without a model, for each number of clients."""
    spec = _spec("paced", max(clients))
    params = replace(GREEDY, max_tokens=tokens)
    requests = [request(f"{n}", [FIRST_PROMPT + n], params) for n in range(max(clients))]
    factory = partial(EngineClient, target=partial(paced_main, beat=BEAT))
    with front_end(spec, factory) as port:
        ask_all(port, requests[:1])
        return {
            number: [
                _rates(paced_streams(requests[:number]), ask_all(port, requests[:number]))
                for _ in range(rounds)
            ]
            for number in clients
        }


def paced_streams(requests: Sequence[Generate]) -> list[Stream]:
    """The paced engine alone."""
    engine = PacedEngine(BEAT, len(requests))
    for message in requests:
        engine.add(message)
    streams = {message.request_id: Stream() for message in requests}
    while engine.has_work():
        events = engine.step()
        now = time.perf_counter()
        for event in events:
            assert isinstance(event, Tokens), event
            streams[event.request_id].add(now, len(event.text), len(event.ids))
    return list(streams.values())


def _streams(run: Run) -> list[Stream]:
    streams: dict[str, Stream] = {}
    for emission in run.emissions:
        stream = streams.setdefault(emission.request_id, Stream())
        stream.add(emission.at, len(emission.text), len(emission.ids))
    return list(streams.values())


def _rates(alone: Sequence[Stream], served: Sequence[Stream]) -> Rates:
    """Raises `ValueError` when the answers differ in length: rates could not be compared."""
    lengths = [sorted((s.num_characters, s.num_tokens) for s in own) for own in (alone, served)]
    if lengths[0] != lengths[1]:
        raise ValueError(f"other answers over HTTP: characters and tokens {lengths}")
    token = sum(s.num_tokens for s in alone) / sum(s.num_characters for s in alone)
    return Rates(token * rate(alone), token * rate(served))


def _spec(name: str, max_sequences: int) -> ModelSpec:
    # Fixed trees: both engines do the same, whatever each has learned.
    draft = DraftSpec("subspec", depth=8, width=4, branch=4, budget=32, tuned=False, ahead=False)
    spec = ram_spec(DEMO / "target", draft, gbps=LINK_GBPS, max_sequences=max_sequences)
    return replace(spec, id=name)


def _cells(rates: Sequence[Rates]) -> list[Any]:
    return [_median(rates, field) for field in ("alone", "served", "share")]


def _median(rates: Sequence[Rates], field: str) -> float:
    return statistics.median(float(getattr(pace, field)) for pace in rates)


if __name__ == "__main__":
    main()
