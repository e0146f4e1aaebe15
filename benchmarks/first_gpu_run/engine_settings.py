"""The settings of the engine's stages: drafts, numerics, memory, and the requests of users."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.first_gpu_run.checkpoint import model_of
from benchmarks.first_gpu_run.lab import Lab
from benchmarks.runs import GREEDY, load_chat_prompts, make_request
from engine.messages import Generate
from engine.spec import DraftSpec, MemorySpec, ModelSpec, Numerics, StreamSpec, TargetSpec

SIMULATED_GBPS = 4.0  # the link of a dry run
USERS = 8
CONTEXT = 4608
PROMPT_TOKENS = 4000
# The copies are not fitted to the inputs: that would take a minute before the first figure.
SERIAL = DraftSpec("subspec", depth=48, width=6, ahead=False, tuned=False, calibrate=False)
OURS = DraftSpec("subspec", depth=48, width=6, calibrate=False)
PLAIN = DraftSpec("none")


def make_spec(lab: Lab, draft: str, numerics: Numerics, *, small: bool = False) -> ModelSpec:
    """Return the specification of an engine with the draft "plain", "serial" or "ours"."""
    chosen = {"plain": PLAIN, "serial": SERIAL, "ours": OURS}[draft]
    if lab.is_dry and draft != "plain":
        chosen = replace(chosen, depth=2, width=2, budget=8)
    return ModelSpec(
        id="first-gpu-run",
        target=TargetSpec(str(model_of(lab, small=small).folder)),
        draft=chosen,
        device=str(lab.device),
        memory=MemorySpec(device=lab.cap_bytes),
        stream=StreamSpec(
            tier="ram",
            resident=0 if small or lab.is_dry else None,
            simulate_gbps=SIMULATED_GBPS if lab.is_dry else None,
            coding="none",  # the bars are those of plain weights; a stage of its own has coded ones
        ),
        numerics=numerics,
        context_length=lab.choose(CONTEXT, 1024),
        max_sequences=count_users(lab),
        prefix_cache=False,
    )


def cap_memory(lab: Lab, nbytes: int | None = None) -> None:
    """Limit the device memory that this process may allocate, by default to that of the engine."""
    if not lab.is_dry:
        nbytes = lab.cap_bytes if nbytes is None else nbytes
        total = torch.cuda.get_device_properties(lab.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, nbytes / total), lab.device)


def count_users(lab: Lab) -> int:
    """Return how many users are served at once, beside the measurement of one alone."""
    return lab.choose(USERS, 2)


def user_requests(count: int, max_tokens: int | None = None) -> list[Generate]:
    """Return greedy requests of `count` users, each with a chat of its own."""
    prompts = load_chat_prompts("held_out")
    params: Any = replace(GREEDY, max_tokens=max_tokens)
    return [make_request(f"user {n}", prompts[n % len(prompts)], params) for n in range(count)]


def long_prompt(tokens: int) -> Sequence[int]:
    """Return a prompt of this length, which consists of chats."""
    chats = load_chat_prompts("held_out")
    joined = [token for chat in chats for token in chat]
    return (joined * (tokens // len(joined) + 1))[:tokens]
