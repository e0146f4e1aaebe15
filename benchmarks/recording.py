"""Record a target's greedy answers to held-out prompts, with their log-probabilities.

    python -m benchmarks.recording TARGET FILE --tokens 200

The answers come from plain decoding under strict numerics and go on after their end token. The
draft `replay` proposes them, and the tokens of every engine are compared with them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from transformers import AutoConfig

from benchmarks.runs import GREEDY, load_chat_prompts, session
from engine.errors import EngineError
from engine.messages import Generate, Tokens
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, ModelSpec, TargetSpec

CHOSEN = (4, 12, 16, 20)  # held-out chats: one about the documentation, three stories


@dataclass(frozen=True)
class Recording:
    """A prompt and its greedy answer."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    nats: tuple[float, ...]  # -log p of each token of the answer
    own_length: int  # tokens up to the first end token, which is included

    def entropy(self, num_tokens: int) -> float:
        """Return the mean nats of the first `num_tokens` tokens, or of all up to the end."""
        return statistics.fmean(self.nats[: min(num_tokens, self.own_length)])


def end_tokens(target: Path) -> tuple[int, ...]:
    """Return the end tokens of a checkpoint."""
    ends = AutoConfig.from_pretrained(target).eos_token_id
    return (ends,) if isinstance(ends, int) else tuple(ends)


def record(target: Path, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[Recording]:
    """Answer all prompts greedily, without a draft. Raises `EngineError`."""
    spec = ModelSpec(
        id="recording",
        target=TargetSpec(str(target)),
        draft=DraftSpec(method="none"),
        device="cpu",
        max_sequences=len(prompts),
    )
    params = replace(GREEDY, max_tokens=num_tokens, ignore_eos=True, logprobs=0)
    with session(spec) as own:
        for i, prompt in enumerate(prompts):
            own.engine.add(Generate(str(i), tuple(prompt), params))
        answers = _answers(own.engine)
    ends = end_tokens(target)
    recordings = []
    for i, prompt in enumerate(prompts):
        tokens = [token for event in answers[str(i)] for token in event.ids]
        nats = [-logprob.logprob for event in answers[str(i)] for logprob in event.logprobs]
        own_length = next((n for n, token in enumerate(tokens, 1) if token in ends), len(tokens))
        recordings.append(Recording(tuple(prompt), tuple(tokens), tuple(nats), own_length))
    return recordings


def _answers(engine: Engine) -> dict[str, list[Tokens]]:
    answers: dict[str, list[Tokens]] = {}
    while engine.has_work():
        for event in engine.step():
            if not isinstance(event, Tokens):
                raise EngineError(event.message)
            answers.setdefault(event.request_id, []).append(event)
    return answers


def read_recordings(path: Path) -> list[Recording]:
    """Read the recordings that `python -m benchmarks.recording` wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return [
        Recording(tuple(r["prompt"]), tuple(r["answer"]), tuple(r["nats"]), r["own_length"])
        for r in data
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recording", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("target", type=Path, help="folder of a checkpoint with the demo's tokens")
    parser.add_argument("file", type=Path, help="JSON to write")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of each answer")
    args = parser.parse_args()
    prompts = load_chat_prompts("held_out")
    began = time.monotonic()
    recordings = record(args.target, [prompts[i] for i in CHOSEN], args.tokens)
    args.file.write_text(json.dumps([asdict(recording) for recording in recordings]))
    print(f"{args.file}: {len(recordings)} answers in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
