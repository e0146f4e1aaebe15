"""The engine with one draft and one kind of numerics: one user, eight users, and a long prompt.

The times are compared with what the machine can do, which is measured first: large copies from
pinned RAM, and copies within the device's memory. The serial schedule is SubSpec's as published,
with the same kernels: depth 48, width 6, no drafting ahead, no tuning. The answers' tokens are
recorded, because under strict numerics they must be equal with any draft and beside any users.
"""

import gzip
import shutil
import statistics
import time
from dataclasses import fields, replace
from typing import Any, cast

from torch.profiler import ProfilerActivity, profile

from benchmarks.first_gpu_run.engine_settings import (
    PROMPT_TOKENS,
    SIMULATED_GBPS,
    cap_memory,
    count_users,
    long_prompt,
    make_spec,
    user_requests,
)
from benchmarks.first_gpu_run.lab import Lab, gbps, ms
from benchmarks.first_gpu_run.record import Results
from benchmarks.runs import GREEDY, Run, Session, abort_requests, drive, make_request, session
from engine.messages import Generate, PassStats
from engine.spec import Numerics

PASSES = 8  # of a measurement
ANSWER_TOKENS = 48  # of the answers that are compared
ADMITTED_WITHIN = 30  # passes until all users have their first token
TRACED_PASSES = 3
MOST_SHOWN = 40  # kernels in the table of a trace
TRACED = "ours fast"


def run(lab: Lab, out: Results) -> None:
    """Load one engine and measure it."""
    is_small = lab.part == "small"
    draft, numerics = ("ours", "strict") if is_small else lab.part.split()
    spec = make_spec(lab, draft, cast(Numerics, numerics), small=is_small)
    cap_memory(lab)
    users = count_users(lab)
    link = SIMULATED_GBPS * 1e9 if lab.is_dry else lab.link_bandwidth()
    memory = lab.memory_bandwidth()
    out["link_gbps"], out["memory_gbps"] = gbps(link, 1.0), gbps(memory, 1.0)
    lab.give_back_freed()
    began = time.perf_counter()
    with session(spec) as served:
        out["load_seconds"] = round(time.perf_counter() - began, 1)
        _describe(served, out)
        out["one user"] = one = measure_users(lab, served, 1)
        if served.streamed_bytes:
            travel_ms = served.streamed_bytes / link * 1e3
            out["pass_over_travel"] = round(one["pass_ms"] / travel_ms, 4)
        if draft == "serial":
            depth = spec.draft.depth or 1
            read_ms = out["draft_bytes"] / memory * 1e3
            out["step_ms"] = round(one["draft_ms"] / depth, 4)
            out["step_over_reading"] = round(one["draft_ms"] / depth / read_ms, 4)
        out["tokens"] = {"alone": answer_tokens(lab, served, 1)}
        out["eight users"] = measure_users(lab, served, users)
        out["tokens"] = out["tokens"] | {"beside others": answer_tokens(lab, served, users)}
        if draft != "serial":
            out["prompt"] = _measure_prompt(lab, served)
        if lab.part == TRACED:
            _trace(lab, served, out)


def measure_users(lab: Lab, served: Session, users: int) -> dict[str, float]:
    """Return the speed and the medians of all figures of the passes, in the steady state."""
    requests = user_requests(users)
    _admit(lab, served, requests)
    measured = drive(served, passes=lab.choose(PASSES, 1))
    abort_requests(served, [request.request_id for request in requests])
    numbers = [f.name for f in fields(PassStats) if f.type in (int, float, "int", "float")]
    found = {
        name: round(statistics.median(getattr(p, name) for p in measured.passes), 4)
        for name in numbers
    }
    found["tokens_per_second"] = round(measured.tokens_per_second, 3)
    found["tokens_per_pass"] = round(measured.num_tokens / len(measured.passes) / users, 3)
    return found


def answer_tokens(lab: Lab, served: Session, users: int) -> list[int]:
    """Return the tokens of the first user's answer while the other users' requests run."""
    requests = user_requests(users, lab.choose(ANSWER_TOKENS, 4))
    return list(drive(served, requests).tokens_of(requests[0].request_id))


def _admit(lab: Lab, served: Session, requests: list[Generate]) -> None:
    """Add the requests, and run passes until all have tokens, and two more."""
    answered = drive(served, requests, passes=1).answered
    for _ in range(ADMITTED_WITHIN):
        if len(answered) == len(requests):
            break
        lab.check()
        answered |= drive(served, passes=1).answered
    drive(served, passes=2)


def _describe(served: Session, out: Results) -> None:
    plan = served.loaded.plan
    out["plan"] = str(plan)
    out["tiers"] = list(plan.tiers)
    out["draft_method"] = served.loaded.info.draft_method
    out["streamed_bytes"] = served.streamed_bytes
    # A resident layer drafts for itself, so a draft step reads it too.
    out["draft_bytes"] = plan.draft_bytes + plan.resident_bytes
    out["context"] = served.loaded.limits.max_tokens


def _measure_prompt(lab: Lab, served: Session) -> dict[str, Any]:
    """Return the seconds until the first token of a long prompt."""
    wanted = lab.choose(PROMPT_TOKENS, 100)
    most = served.loaded.limits.max_tokens - 2
    if most < wanted:
        return {"skipped": f"the plan leaves a context of {most} tokens, {wanted} are needed"}
    params = replace(GREEDY, max_tokens=1)
    asked: Run = drive(served, [make_request("long", long_prompt(wanted), params)])
    seconds = asked.times_of("long")[0] - asked.began
    return {"tokens": wanted, "first_token_seconds": round(seconds, 4), "passes": len(asked.passes)}


def _trace(lab: Lab, served: Session, out: Results) -> None:
    """Record where the device's time goes in some cycles, and write the profiler's trace."""
    requests = user_requests(1)
    _admit(lab, served, requests)
    kinds = [ProfilerActivity.CPU] + ([] if lab.is_dry else [ProfilerActivity.CUDA])
    with profile(activities=kinds) as seen:
        traced = drive(served, passes=lab.choose(TRACED_PASSES, 1))
        lab.synchronize()
    abort_requests(served, [request.request_id for request in requests])
    place = lab.device.type.upper()
    kernels = [event for event in seen.key_averages() if event.device_type.name == place]
    kernels.sort(key=_device_us, reverse=True)
    out["trace"] = {
        "cycles": len(traced.passes),
        "ms": ms(traced.seconds),
        "device_ms": round(sum(map(_device_us, kernels)) / 1e3, 3),
        "launches_of_a_cycle": round(sum(event.count for event in kernels) / len(traced.passes)),
        "kernels": {
            event.key[:120]: {"ms": round(_device_us(event) / 1e3, 3), "launches": event.count}
            for event in kernels[:MOST_SHOWN]
        },
    }
    path = lab.folder / "trace.json"
    seen.export_chrome_trace(str(path))
    with path.open("rb") as plain, gzip.open(f"{path}.gz", "wb", compresslevel=1) as packed:
        shutil.copyfileobj(plain, packed)
    path.unlink()


def _device_us(event: Any) -> float:
    """Return the microseconds of a row of the profiler's table, on a CPU those of the host."""
    on_device = float(event.self_device_time_total)
    return on_device or float(event.self_cpu_time_total)
