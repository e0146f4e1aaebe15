"""Run our own engine in this process, without HTTP.

Options of the job: `draft` and `spec` (fields of DraftSpec and ModelSpec), `device_bytes`, and
`headroom` (tokens added to the limit of a request, so that its last tree is a full one).
"""

import time
from dataclasses import replace
from typing import Any

from benchmarks import drafters
from benchmarks.peers.job import Answer, Job, Outcome, Prompt, Recorder, run
from benchmarks.runs import GREEDY, Run, Session, session, step
from engine.drafting import methods
from engine.messages import Generate, PassStats
from engine.spec import DraftSpec, MemorySpec, ModelSpec, TargetSpec


def main() -> None:
    """Add the drafting method `replay` and answer the prompts of the job."""
    methods.__path__.extend(drafters.__path__)  # adds `replay`
    run(answer_all)


def answer_all(job: Job) -> Outcome:
    """Load the model and answer the prompts."""
    began = time.perf_counter()
    with session(make_spec(job)) as own:
        load_s = time.perf_counter() - began
        headroom = job.options.get("headroom", 0)
        answers = tuple(_answer(own, prompt, job.ends, headroom) for prompt in job.prompts)
        plan = own.loaded.plan
        figures = {
            "plan": str(plan),
            "streamed_bytes": own.streamed_bytes,
            "link_gbps": own.loaded.info.link_gbps,
        }
    return Outcome(load_s, answers, figures)


def make_spec(job: Job) -> ModelSpec:
    """Return the engine's specification for a job."""
    options = job.options
    return ModelSpec(
        id="offload",
        target=TargetSpec(job.model),
        draft=DraftSpec(**options["draft"]),
        device="cpu",
        memory=MemorySpec(device=options.get("device_bytes")),
        prefix_cache=False,
        **options.get("spec", {}),
    )


def _answer(own: Session, prompt: Prompt, ends: tuple[int, ...], headroom: int) -> Answer:
    recorder = Recorder(prompt, ends)
    most = prompt.max_tokens + headroom
    params = replace(GREEDY, max_tokens=most, ignore_eos=True, stop_token_ids=ends)
    own.engine.add(Generate(prompt.label, prompt.ids, params))
    done = Run(began=time.perf_counter())
    while own.engine.has_work():
        before = len(done.emissions)
        step(own, done)
        for emission in done.emissions[before:]:
            if recorder.emit(emission.ids):
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
