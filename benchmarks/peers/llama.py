"""Run llama.cpp through llama-cpp-python, with the model's file mapped into memory.

Options of the job: `threads`, `context`.
"""

import time
from importlib import import_module
from typing import Any

from benchmarks.peers.job import Answer, Job, Outcome, Prompt, Recorder, run


def answer_all(job: Job) -> Outcome:
    """Load the model and answer the prompts."""
    llama_cpp: Any = import_module("llama_cpp")
    began = time.perf_counter()
    model = llama_cpp.Llama(
        job.model,
        n_ctx=job.options["context"],
        n_threads=job.options["threads"],
        n_threads_batch=job.options["threads"],
        use_mmap=True,
        verbose=False,
    )
    load_s = time.perf_counter() - began
    answers = tuple(_answer(model, prompt, job.ends) for prompt in job.prompts)
    return Outcome(load_s, answers, {"version": llama_cpp.__version__})


def _answer(model: Any, prompt: Prompt, ends: tuple[int, ...]) -> Answer:
    recorder = Recorder(prompt, ends)
    for token in model.generate(list(prompt.ids), temp=0.0, top_k=1, repeat_penalty=1.0):
        if recorder.emit([int(token)]):
            break
    return recorder.answer()


if __name__ == "__main__":
    run(answer_all)
