"""Run transformers' `generate` with accelerate's offload to disk, with or without an assistant.

Options of the job: `cpu_bytes` (bytes of the model that stay in memory; null: all), `assistant`
(the folder of the draft model, or null), `threads`.
"""

import time
from importlib import import_module
from typing import Any

import torch
import transformers

from benchmarks.peers.job import Answer, Job, Outcome, Prompt, Recorder, run


def answer_all(job: Job) -> Outcome:
    """Load the models and answer the prompts."""
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(job.options["threads"])
    began = time.perf_counter()
    model = _load(job.model, job.options["cpu_bytes"])
    assistant = _load(job.options["assistant"], None) if job.options["assistant"] else None
    load_s = time.perf_counter() - began
    draft = _Stopwatch(assistant) if assistant is not None else None
    answers = tuple(_answer(model, assistant, draft, prompt, job.ends) for prompt in job.prompts)
    accelerate: Any = import_module("accelerate")
    return Outcome(load_s, answers, {"version": accelerate.__version__})


def _load(folder: str, cpu_bytes: int | None) -> Any:
    """Load a model in bfloat16; layers beyond `cpu_bytes` are read from its files at every use."""
    kind: Any = transformers.AutoModelForCausalLM
    offload: dict[str, Any] = {}
    if cpu_bytes is not None:
        config = transformers.AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            empty = kind.from_config(config, dtype=torch.bfloat16)
        offload = {
            "device_map": _make_device_map(empty, cpu_bytes),
            "offload_folder": f"{folder}-offload",
        }
    return kind.from_pretrained(folder, dtype=torch.bfloat16, **offload).eval()


def _make_device_map(empty: Any, cpu_bytes: int) -> dict[str, str]:
    """Return a device map: embedding, norm, head and the first layers in memory, the rest on disk.

    It differs from `device_map="auto"` in that the embedding stays in memory. If little fits,
    "auto" moves the embedding to disk, and with it the inputs of the assistant.
    """
    layers = empty.model.layers
    layer_bytes = sum(weight.nbytes for weight in layers[0].parameters())
    other_bytes = sum(weight.nbytes for weight in empty.parameters()) - len(layers) * layer_bytes
    resident = max(cpu_bytes - other_bytes, 0) // layer_bytes
    names = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    places = dict.fromkeys(names, "cpu")
    for i in range(len(layers)):
        places[f"model.layers.{i}"] = "cpu" if i < resident else "disk"
    return places


class _Stopwatch:
    """A stopwatch of the forward calls of a module, in seconds."""

    def __init__(self, module: Any) -> None:
        self.seconds = 0.0
        self._began = 0.0
        module.register_forward_pre_hook(self._start)
        module.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._began


class _Streamer:
    """A streamer of `generate`: it gets the prompt, then the tokens of each pass of the target."""

    def __init__(self, recorder: Recorder, draft: _Stopwatch | None) -> None:
        self.draft_s = 0.0  # after the first pass
        self._recorder = recorder
        self._draft = draft
        self._first_s = 0.0
        self._num_puts = 0

    def put(self, value: torch.Tensor) -> None:
        """Record the tokens of a pass, and the draft's time so far."""
        if self._num_puts:
            self._recorder.emit(value.flatten().tolist())
        if self._draft is not None:
            if self._num_puts == 1:
                self._first_s = self._draft.seconds
            self.draft_s = self._draft.seconds - self._first_s
        self._num_puts += 1

    def end(self) -> None:
        """Do nothing: each pass has already been recorded."""


def _answer(
    model: Any,
    assistant: Any,
    draft: _Stopwatch | None,
    prompt: Prompt,
    ends: tuple[int, ...],
) -> Answer:
    recorder = Recorder(prompt, ends)
    streamer = _Streamer(recorder, draft)
    ids = torch.tensor([prompt.ids])
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=prompt.max_tokens,
            eos_token_id=list(ends) or None,
            assistant_model=assistant,
            streamer=streamer,
        )
    return recorder.answer(draft_ms=streamer.draft_s * 1e3)


if __name__ == "__main__":
    run(answer_all)
