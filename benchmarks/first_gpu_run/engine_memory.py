"""Device memory that runs out on purpose: the engine has to go on, with the same answers.

After an engine has been loaded, the allocator's limit is lowered step by step, as if another
program had taken the rest. Requests may then fail one by one with the reason; the process must
live, and with memory again all answers must be what they were.
"""

import logging
from typing import Any

import torch

from benchmarks.first_gpu_run.engine_settings import cap_memory, make_spec, user_requests
from benchmarks.first_gpu_run.lab import MIB, Lab
from benchmarks.first_gpu_run.record import Results
from benchmarks.runs import Session, session
from engine.messages import Failed, Tokens

ROOM_MIB = (256, 64, 16, 4, 0)  # of device memory beyond what is allocated
ANSWER_TOKENS = 24
USERS = 4
SHORTAGE = "engine.runtime.shortage"  # the logger that reports each shortage


def run(lab: Lab, out: Results) -> None:
    """Answer the same requests with enough memory, with less and less, and with enough again."""
    lab.require_device(
        "a CPU's allocator has no limit; tests/engine/runtime/test_out_of_memory.py lets "
        "allocations fail there"
    )
    spec = make_spec(lab, "ours", "strict")
    cap_memory(lab)
    counter = _Counter()
    logging.getLogger(SHORTAGE).addHandler(counter)
    with session(spec) as served:
        want, _ = _answer(lab, served)
        out["tokens"] = {name: len(ids) for name, ids in want.items()}
        for room in ROOM_MIB:
            lab.check()
            counter.count = 0
            lab.give_back_freed()
            reserved = torch.cuda.memory_reserved(lab.device)
            cap_memory(lab, reserved + room * MIB)
            found, failed = _answer(lab, served)
            out[f"{room} MiB"] = {
                "shortages": counter.count,
                "failed_requests": failed,
                "answers_are_equal": all(
                    found.get(name) == ids for name, ids in want.items() if name not in failed
                ),
            }
        cap_memory(lab)
        found, failed = _answer(lab, served)
        out["afterwards"] = {"failed_requests": failed, "answers_are_equal": found == want}


def _answer(lab: Lab, served: Session) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Return the tokens of all answers by request, and the messages of those that failed."""
    answers: dict[str, list[int]] = {}
    failed: dict[str, str] = {}
    for request in user_requests(USERS, ANSWER_TOKENS):
        served.engine.add(request)
    while served.engine.has_work():
        lab.check()
        for event in served.engine.step():
            if isinstance(event, Failed):
                failed[event.request_id] = event.message
            elif isinstance(event, Tokens):
                answers.setdefault(event.request_id, []).extend(event.ids)
    return answers, failed


class _Counter(logging.Handler):
    """A handler that counts what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: Any) -> None:
        self.count += 1
