"""Measure how much of the engine's tokens/s reaches clients that stream over HTTP.

    python -m benchmarks.serve [--json]

The engine alone, in this process, and the real server with its engine process answer the same
requests in turn. All requests are sent at once; the server's clients run in this process and use
loopback. The rate of a stream is counted from its first tokens to its last, and the rates of the
streams are added. The texts are equal, so rates are measured in characters and reported in tokens.

There are two engines: the demo's model with a simulated link that limits the rate of its passes, as
in service, and an engine without a model that emits tokens at fixed intervals, which shows the
limit of the front end. Both are measured once more with eight requests that ask for the draft trees
of all passes (`provenance: "tree"`).
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.command import make_parser, print_figures
from benchmarks.http_streams import Stream, ask_all, compute_rate, front_end
from benchmarks.paced_engine import PacedEngine, Schedule, main as paced_main
from benchmarks.report_format import Bar, Figures, Plot, Table
from benchmarks.runs import (
    DEMO,
    GREEDY,
    Run,
    describe_machine,
    drive,
    load_chat_prompts,
    make_request,
    ram_spec,
    session,
)
from engine.messages import Generate, Tokens
from engine.process.client import EngineClient
from engine.spec import DraftSpec, ModelSpec

CLIENTS = (1, 8, 32, 64)
NUM_CLIENTS_WITH_BAR = 8
AT_LEAST = 0.98
AT_LEAST_WITH_TREES = 0.95
MANY_NODES = 1 << 30
TREES = ", with trees"
LINK_GBPS = 0.04  # 8 MB per pass take 0.2 s, longer than the compute of eight trees
SCHEDULE = Schedule(seconds=0.1, burst=8)  # 80 tokens a second for each stream
PACED_TOKENS = 48
MODEL_TOKENS = 56
FIRST_PROMPT = 50  # a token id


@dataclass(frozen=True)
class Rates:
    """The rates of all streams together, in tokens per second."""

    alone: float  # of the engine alone
    served: float  # at the clients

    @property
    def share(self) -> float:
        return self.served / self.alone


def main() -> None:
    arguments = make_parser(__doc__, takes_model=False)
    arguments.add_argument(
        "--clients", type=int, nargs="+", default=CLIENTS, help="of the paced engine"
    )
    arguments.add_argument(
        "--tokens", type=int, default=PACED_TOKENS, help="tokens of a paced answer"
    )
    arguments.add_argument(
        "--model-tokens", type=int, default=MODEL_TOKENS, help="tokens of a model answer"
    )
    options = arguments.parse_args()
    figures = measure(
        options.clients,
        rounds=options.rounds,
        tokens=options.tokens,
        model_tokens=options.model_tokens,
    )
    print_figures(figures, options)


def measure(clients: Sequence[int], *, rounds: int, tokens: int, model_tokens: int) -> Figures:
    """Measure the model with one number of clients, the paced engine with each; return figures."""
    measured: dict[str, dict[int, list[Rates]]] = {}
    for trees, with_trees in (("", False), (TREES, True)):
        model = measure_model(rounds, model_tokens, with_trees=with_trees)
        measured[f"the demo's model{trees}"] = {NUM_CLIENTS_WITH_BAR: model}
        measured[f"paced engine{trees}"] = measure_paced(
            [NUM_CLIENTS_WITH_BAR] if with_trees else clients, rounds, tokens, with_trees=with_trees
        )
    shares = {
        name: {number: _median(rates, "share") for number, rates in own.items()}
        for name, own in measured.items()
    }
    lines = [
        [name, number, *_cells(rates)]
        for name, own in measured.items()
        for number, rates in own.items()
    ]
    return Figures(
        name="serve",
        title="Throughput of the front end compared with the engine alone",
        values={
            "link_gbps": LINK_GBPS,
            "pass_ms": SCHEDULE.seconds * 1e3,
            "tokens_per_pass_and_stream": SCHEDULE.burst,
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
            Bar(
                f"share of tokens/s that reaches {NUM_CLIENTS_WITH_BAR} clients, {name}",
                own[NUM_CLIENTS_WITH_BAR],
                ">=",
                AT_LEAST_WITH_TREES if name.endswith(TREES) else AT_LEAST,
            )
            for name, own in shares.items()
            if NUM_CLIENTS_WITH_BAR in own
        ],
        plots=[
            Plot(
                "serve",
                "streaming clients",
                "share of the engine's tokens/s",
                {
                    name: [(float(number), share) for number, share in own.items()]
                    for name, own in shares.items()
                    if len(own) > 1
                },
                log_x=True,
            )
        ],
        machine=describe_machine(),
    )


def measure_model(rounds: int, tokens: int, *, with_trees: bool = False) -> list[Rates]:
    """Measure the demo's model in this process and over HTTP; return the rates of each round.

    `with_trees`: the requests over HTTP ask for draft trees.
    """
    spec = _make_spec("demo", NUM_CLIENTS_WITH_BAR)
    params = replace(GREEDY, max_tokens=tokens)
    prompts = load_chat_prompts("held_out")[:NUM_CLIENTS_WITH_BAR]
    requests = [make_request(f"{n}", prompt, params) for n, prompt in enumerate(prompts)]
    with session(spec) as alone, front_end(spec, EngineClient) as port:
        drive(alone, requests)
        asked = _asked(requests, with_trees)
        ask_all(port, asked)
        return [
            _rates(_streams(drive(alone, requests)), ask_all(port, asked)) for _ in range(rounds)
        ]


def measure_paced(
    clients: Sequence[int], rounds: int, tokens: int, *, with_trees: bool = False
) -> dict[int, list[Rates]]:
    """Measure the paced engine; return the rates of each round for each number of clients.

    `with_trees`: the requests over HTTP ask for draft trees.
    """
    spec = _make_spec("paced", max(clients))
    params = replace(GREEDY, max_tokens=tokens)
    requests = [make_request(f"{n}", [FIRST_PROMPT + n], params) for n in range(max(clients))]
    factory = partial(EngineClient, target=partial(paced_main, schedule=SCHEDULE))
    asked = _asked(requests, with_trees)
    with front_end(spec, factory) as port:
        ask_all(port, asked[:1])
        return {
            number: [
                _rates(run_paced_engine(requests[:number]), ask_all(port, asked[:number]))
                for _ in range(rounds)
            ]
            for number in clients
        }


def _asked(requests: Sequence[Generate], with_trees: bool) -> list[Generate]:
    """Return the requests as they are sent over HTTP."""
    return [replace(own, traced_nodes=MANY_NODES if with_trees else 0) for own in requests]


def run_paced_engine(requests: Sequence[Generate]) -> list[Stream]:
    """Run the paced engine in this process and return its streams."""
    engine = PacedEngine(SCHEDULE, len(requests))
    for message in requests:
        engine.queue(message, None)
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
    """Return the rates in tokens. Raises `ValueError` if the answers differ in length."""
    lengths = [sorted((s.num_characters, s.num_tokens) for s in own) for own in (alone, served)]
    if lengths[0] != lengths[1]:
        raise ValueError(f"other answers over HTTP; characters and tokens: {lengths}")
    token = sum(s.num_tokens for s in alone) / sum(s.num_characters for s in alone)
    return Rates(token * compute_rate(alone), token * compute_rate(served))


def _make_spec(name: str, max_sequences: int) -> ModelSpec:
    # Fixed trees, so that both engines do the same whatever speeds they have measured.
    draft = DraftSpec("subspec", depth=8, width=4, branch=4, budget=32, tuned=False, ahead=False)
    spec = ram_spec(DEMO / "target", draft, gbps=LINK_GBPS, max_sequences=max_sequences)
    return replace(spec, id=name)


def _cells(rates: Sequence[Rates]) -> list[Any]:
    return [_median(rates, field) for field in ("alone", "served", "share")]


def _median(rates: Sequence[Rates], field: str) -> float:
    return statistics.median(float(getattr(pace, field)) for pace in rates)


if __name__ == "__main__":
    main()
