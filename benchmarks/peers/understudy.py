"""Run our own engine in this process, without HTTP.

Options of the job: `draft`, `stream` and `spec` (fields of DraftSpec, StreamSpec and ModelSpec),
`device_bytes`, `headroom` (tokens added to the limit of a request, so that its last tree is a full
one), and `passes` (after which an answer ends, without that of the prompt).
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

from torch import Tensor

from benchmarks import drafters
from benchmarks.peers.job import Answer, Job, Outcome, Prompt, Recorder, run
from benchmarks.runs import GREEDY, Run, Session, session, step
from engine.drafting import methods
from engine.messages import Generate, PassStats
from engine.spec import DraftSpec, MemorySpec, ModelSpec, StreamSpec, TargetSpec
from engine.streaming.coded import DecodedUnits
from engine.streaming.pinned import allocate_pages
from engine.timing import time_runs

DECODED_UNITS = 4  # that are decoded alone, in order to time it


def main() -> None:
    """Add the drafting method `replay` and answer the prompts of the job."""
    methods.__path__.extend(drafters.__path__)  # adds `replay`
    run(answer_all)


def answer_all(job: Job) -> Outcome:
    """Load the model and answer the prompts."""
    began = time.perf_counter()
    with _note_decoded() as decoded, session(make_spec(job)) as own:
        load_s = time.perf_counter() - began
        answers = tuple(_answer(own, prompt, job) for prompt in job.prompts)
        figures = {
            "plan": own.loaded.info.plan,
            "streamed_bytes": own.streamed_bytes,
            "link_gbps": own.loaded.info.link_gbps,
            "link_bits": own.loaded.info.link_bits,
            "decode_s": own.streamed_bytes * _decode_seconds(decoded) if decoded else 0.0,
        }
    return Outcome(load_s, answers, figures)


@contextmanager
def _note_decoded() -> Iterator[dict[int, DecodedUnits]]:
    """Note the units that are decoded meanwhile, with their readers."""
    found: dict[int, DecodedUnits] = {}
    decode = DecodedUnits.decode

    def note(reader: DecodedUnits, index: int, memory: Tensor, slot: Tensor) -> None:
        found[index] = reader
        decode(reader, index, memory, slot)

    with patch.object(DecodedUnits, "decode", note):
        yield found


def _decode_seconds(decoded: Mapping[int, DecodedUnits]) -> float:
    """Return the seconds in which one byte of plain weights is decoded while nothing else runs."""
    seconds, nbytes = 0.0, 0
    for unit, reader in list(decoded.items())[:DECODED_UNITS]:
        memory = allocate_pages(reader.layouts[unit].nbytes)
        slot = allocate_pages(reader.slot_layouts[unit].nbytes)
        reader.read(unit, memory)
        seconds += min(time_runs(partial(reader.decode, unit, memory, slot), 3))
        nbytes += len(slot)
    return seconds / nbytes


def make_spec(job: Job) -> ModelSpec:
    """Return the engine's specification for a job."""
    options = job.options
    return ModelSpec(
        id="offload",
        target=TargetSpec(job.model),
        draft=DraftSpec(**options["draft"]),
        device="cpu",
        memory=MemorySpec(device=options.get("device_bytes")),
        stream=StreamSpec(**options.get("stream", {})),
        prefix_cache=False,
        **options.get("spec", {}),
    )


def _answer(own: Session, prompt: Prompt, job: Job) -> Answer:
    recorder = Recorder(prompt, job.ends)
    most = prompt.max_tokens + job.options.get("headroom", 0)
    most_passes = job.options.get("passes", most)
    params = replace(GREEDY, max_tokens=most, ignore_eos=True, stop_token_ids=job.ends)
    own.engine.add(Generate(prompt.label, prompt.ids, params))
    done = Run(began=time.perf_counter())
    while own.engine.has_work():
        before = len(done.emissions)
        step(own, done)
        for emission in done.emissions[before:]:
            if recorder.emit(emission.ids) or len(done.emissions) > most_passes:
                own.engine.abort(prompt.label)  # has no effect on a request that has ended
    after_prompt = len(done.passes) - len(done.emissions) + 1
    return recorder.answer(**_make_figures(done.passes[after_prompt:]))


def _make_figures(passes: list[PassStats]) -> dict[str, float]:
    """Return sums over the passes after the prompt's."""
    names = ("rows", "draft_ms", "pass_ms", "ahead_ms", "copy_stall_ms", "host_ms", "link_bytes")
    sums: dict[str, Any] = {name: sum(getattr(p, name) for p in passes) for name in names}
    return sums


if __name__ == "__main__":
    main()
