"""Measure idle KV on disk: a long prompt after a restart, and what the store costs otherwise.

    python -m benchmarks.kv_disk [--json]

In one run, with one thread: a prompt of `--tokens` is computed, its KV is written, and the model
is loaded again for each round, so that the prompt's first token comes after a read. Then a prompt
of other tokens is looked up, of which the disk has nothing. At last 64 tokens are generated, one
per pass: in turn without writing, and with as many pages waiting to be written as can wait, and one
that is evicted, because an answer of 64 tokens takes the memory of one page. The processor time, of
which the thread that writes is a part, depends less on what else runs on the machine.
"""

import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from benchmarks.command import make_parser, print_figures, print_progress
from benchmarks.prefill import LONG, make_prompt
from benchmarks.random_model import make_checkpoint
from benchmarks.report_format import Bar, Figures, Table
from benchmarks.runs import (
    GREEDY,
    MODELS,
    Session,
    abort_requests,
    describe_machine,
    drive,
    make_request,
    session,
)
from engine.errors import ModelError
from engine.kv.disk.store import QUEUED_BLOCKS
from engine.spec import DraftSpec, MemorySpec, ModelSpec, TargetSpec
from engine.streaming import packed_cache

MODEL = "benchmark-kv-disk"  # its blocks are removed before and after
LENGTH = 16_000
ROOM = 4 << 30
LOOKUPS = 20
PASSES = 64  # of an answer, one for each token
MOST_READ, MOST_LOOKUP, MOST_WRITING = 0.1, 0.02, 1.02


@dataclass(frozen=True)
class Answer:
    """The duration of an answer, and what the processor worked for it."""

    seconds: float
    cpu_seconds: float


def main() -> None:
    arguments = make_parser(__doc__)
    arguments.add_argument("--tokens", type=int, default=LENGTH)
    options = arguments.parse_args()
    # The bits of a tile, and so the fingerprint, may depend on the number of threads that a load
    # finds to be the fastest, and blocks of another fingerprint are not read.
    torch.set_num_threads(1)
    folder = options.model or make_checkpoint(MODELS / "long", LONG).folder
    spec = ModelSpec(
        id=MODEL,
        target=TargetSpec(str(folder)),
        draft=DraftSpec("none"),
        device="cpu",
        memory=MemorySpec(kv_disk=ROOM),
        max_sequences=2,
    )
    remove_blocks()
    try:
        figures = measure(spec, options.tokens, options.rounds)
    finally:
        remove_blocks()
    print_figures(figures, options)


def remove_blocks() -> None:
    """Remove what an earlier run has left on the disk."""
    for entry in packed_cache.entries():
        if entry.holds_kv and entry.model == MODEL:
            with suppress(ModelError):
                packed_cache.remove(entry)


def measure(spec: ModelSpec, length: int, rounds: int) -> Figures:
    """Return the figures of a prompt of this length."""
    prompt = make_prompt(length)
    with session(spec) as first:
        first_token(first, make_prompt(100))  # allocates the buffers
        computed, token, _ = first_token(first, prompt)
        print_progress(f"computed in {computed:.2f} s")
        began = time.perf_counter()
        save_all(first)
        saving = time.perf_counter() - began
        nbytes = first.loaded.cache.pool.page_bytes * (length // 64)
    read = []
    for _ in range(rounds):
        with session(spec) as served:
            first_token(served, make_prompt(100))
            seconds, same, cached = first_token(served, prompt)
            if same != token or cached < length - 64:
                raise ModelError(f"{cached} tokens were read; token {same}, computed {token}")
            read.append(seconds)
            print_progress(f"read in {seconds:.3f} s")
    without, with_disk = measure_lookups(spec, length)
    with session(spec) as served:
        answers = measure_writing(served, rounds)
    ratio = statistics.median(read) / computed
    cost = (with_disk - without) / computed
    pairs = list(zip(answers[False], answers[True], strict=True))
    slower = statistics.median(b.seconds / a.seconds for a, b in pairs)
    busier = statistics.median(b.cpu_seconds / a.cpu_seconds for a, b in pairs)
    usual, beside = (statistics.median(own.seconds for own in answers[k]) for k in (False, True))
    return Figures(
        name="kv_disk",
        title="Idle KV on disk",
        values={"prompt_tokens": length, "kv_bytes": nbytes, "rounds": rounds},
        tables=[
            Table(
                "The first token",
                ["computed s", "after a restart s", "ratio", "writing s"],
                [[computed, statistics.median(read), ratio, saving]],
            ),
            Table(
                "A look-up that finds nothing",
                ["without a disk ms", "with it ms", "share of computing"],
                [[without * 1e3, with_disk * 1e3, cost]],
            ),
            Table(
                "An answer of 64 tokens",
                ["s", "while pages are written s", "ratio", "ratio of processor time"],
                [[usual, beside, slower, busier]],
            ),
        ],
        bars=[
            Bar("first token after a restart, of computing", ratio, "<=", MOST_READ),
            Bar("a look-up that finds nothing, of computing", cost, "<=", MOST_LOOKUP),
            Bar("an answer while pages are written", slower, "<=", MOST_WRITING, "x"),
        ],
        machine=describe_machine(),
    )


def first_token(served: Session, prompt: Sequence[int]) -> tuple[float, int, int]:
    """Run a prompt; return the seconds to its first token, that token, and the tokens reused."""
    run = drive(served, [make_request("prompt", prompt, replace(GREEDY, max_tokens=1))])
    return run.seconds, run.tokens_of("prompt")[0], run.finished["prompt"].cached_tokens


def save_all(served: Session) -> None:
    """Write all idle pages, as the loop of the engine process does."""
    saves = served.engine.saves
    while (seconds := saves.seconds_until_due()) is not None:
        if not saves.run():
            time.sleep(seconds)


def measure_lookups(spec: ModelSpec, length: int) -> tuple[float, float]:
    """Return the seconds of opening a sequence of unknown tokens without a disk and with it."""
    tokens = make_prompt(length + 1)
    medians = []
    for room in (0, ROOM):
        with session(replace(spec, memory=MemorySpec(kv_disk=room))) as served:
            cache, times = served.loaded.cache, []
            for _ in range(LOOKUPS):
                began = time.perf_counter()
                table = cache.open(tokens)
                times.append(time.perf_counter() - began)
                cache.close(table)
            medians.append(statistics.median(times))
    return medians[0], medians[1]


def measure_writing(served: Session, rounds: int) -> dict[bool, list[Answer]]:
    """Return answers of 64 tokens by whether pages were written beside them, in turn."""
    first_token(served, make_prompt((QUEUED_BLOCKS + 1) * 64 * rounds + 64))  # pages to be written
    drive(served, [make_request("stream", make_prompt(64), GREEDY)], passes=4)
    answers: dict[bool, list[Answer]] = {False: [], True: []}
    saves, disk = served.engine.saves, served.loaded.cache.disk
    assert disk is not None
    for _ in range(rounds):
        for writes in (False, True):
            disk.flush(60.0)
            while writes and saves.run():
                pass
            began, used = time.perf_counter(), time.process_time()
            drive(served, passes=PASSES // 2)
            if writes:
                saves.run()
            drive(served, passes=PASSES // 2)
            ended = time.perf_counter() - began
            answers[writes].append(Answer(ended, time.process_time() - used))
    abort_requests(served, ["stream"])
    return answers


if __name__ == "__main__":
    main()
