"""Tests of the throughput benchmark: rates of streams, paced engine, real server."""

from dataclasses import replace
from functools import partial

import pytest

from benchmarks import serve
from benchmarks.http_streams import Stream, ask_all, compute_rate, front_end
from benchmarks.paced_engine import PacedEngine, Schedule, main as paced_main
from benchmarks.runs import GREEDY, make_request
from engine.errors import EngineError
from engine.messages import Tokens
from engine.process.client import EngineClient
from engine.spec import ModelSpec, TargetSpec

QUICK = Schedule(seconds=0.001, burst=4)


def stream(*arrivals: tuple[float, int]) -> Stream:
    made = Stream()
    for at, characters in arrivals:
        made.add(at, characters)
    return made


def test_rates_are_counted_from_first_to_last_arrival_and_added() -> None:
    first = stream((0.0, 10), (1.0, 10), (2.0, 10))
    later_and_larger = stream((5.0, 99), (7.0, 30), (9.0, 30))
    assert compute_rate([first, later_and_larger]) == 10.0 + 15.0


def test_a_stream_that_came_all_at_once_has_no_rate() -> None:
    with pytest.raises(ValueError, match="ask for more tokens"):
        compute_rate([stream((0.0, 1), (0.0, 1))])


def test_the_paced_engine_emits_a_burst_for_every_sequence() -> None:
    engine = PacedEngine(QUICK, max_sequences=2)
    for name in "abc":
        engine.queue(make_request(name, [1], replace(GREEDY, max_tokens=6)), None)
    passes = []
    while engine.has_work():
        passes.append(engine.step())
    emitted = [[(e.request_id, len(e.ids)) for e in p if isinstance(e, Tokens)] for p in passes]
    assert emitted == [
        [("a", 4), ("b", 4)],
        [("a", 2), ("b", 2)],
        [("c", 4)],
        [("c", 2)],
    ]
    last = passes[-1][0]
    assert isinstance(last, Tokens) and last.finish == "length"
    assert last.stats is not None and last.stats.completion_tokens == 6


@pytest.mark.slow
def test_clients_get_all_characters_and_tokens_over_http() -> None:
    spec = ModelSpec("paced", TargetSpec("nowhere"), max_sequences=3)
    factory = partial(EngineClient, target=partial(paced_main, schedule=QUICK))
    params = replace(GREEDY, max_tokens=10)
    requests = [make_request(str(n), [50 + n], params) for n in range(3)]
    with front_end(spec, factory) as port:
        streams = ask_all(port, requests)
        traced = ask_all(port, serve._asked(requests, with_trees=True))
        with pytest.raises(EngineError, match="prompt"):
            ask_all(port, [make_request("empty", [], params)])
    expected = serve.run_paced_engine(requests)
    assert [s.num_tokens for s in streams] == [s.num_tokens for s in traced] == [10, 10, 10]
    assert [s.num_characters for s in streams] == [s.num_characters for s in expected]


def test_rates_of_different_answers_are_not_compared() -> None:
    alone, served = stream((0.0, 5), (1.0, 5)), stream((0.0, 5), (1.0, 6))
    with pytest.raises(ValueError, match="other answers"):
        serve._rates([alone], [served])
