"""Compare forms of 4-bit substitutes of a published model by how far they are from the target.

    python -m benchmarks.real.substitutes [--json] [--tokens 96] [--prompts 1]

This takes less time than counting tokens per pass, and its figures have less noise. The target
answers chats of each kind of text (`benchmarks.real.prompts`), greedily and at temperature 0.8. Its
answers are then run through the substitutes, 24 tokens at a time on the target's own keys and
values of all tokens before, as a draft runs. Columns: the divergence of the target from the
substitutes, how often both have the same most likely token, and how often both choose the same
token at temperature 0.8 with the same noise, as drafts do (`engine.sampling.noise`).
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.command import make_parser, print_figures
from benchmarks.real.model import make_model, read_tokenizer
from benchmarks.real.tokens_per_pass import load_chats
from benchmarks.report_format import Figures, Table
from benchmarks.runs import MODELS, describe_machine
from engine.drafting.model.importance import NUM_TEXTS, TEXT_TOKENS
from engine.text.chat_start import start_tokens
from engine.weights.formats.linear import Kernel, linear, store, stored_tensors

WINDOW = 24  # tokens that are computed on the target's keys and values of all before
TEMPERATURE = 0.8
CPU = torch.device("cpu")

Importance = dict[str, Tensor]  # the mean square of each input channel, by the layer's path


@dataclass(frozen=True)
class Form:
    """A form of substitutes."""

    kernel: Kernel
    group: int
    is_fitted: bool

    def __str__(self) -> str:
        return f"{self.kernel}, groups of {self.group}{', fitted' if self.is_fitted else ''}"


PLAIN = Form("int4", 32, is_fitted=False)
FORMS = (
    PLAIN,
    Form("int4", 32, is_fitted=True),
    Form("int4", 64, is_fitted=False),
    Form("int4", 64, is_fitted=True),
    Form("nf4", 64, is_fitted=False),
    Form("nf4", 64, is_fitted=True),
)


@dataclass(frozen=True)
class Answer:
    """An answer of the target, with its keys and values of the whole text."""

    ids: list[int]  # of prompt and answer
    prompt: int  # tokens of the prompt
    keys_and_values: list[tuple[Tensor, Tensor]]  # of each layer


@torch.inference_mode()
def main() -> None:
    parser = make_parser(__doc__, takes_model=False)
    parser.add_argument("--tokens", type=int, default=96, help="of each answer at most")
    parser.add_argument("--prompts", type=int, default=1, help="of each kind, at most 3")
    options = parser.parse_args()
    torch.manual_seed(0)
    target: Any = AutoModelForCausalLM.from_pretrained(
        make_model(MODELS / "smollm2"), dtype=torch.bfloat16
    )
    prompts = [prompt for own in load_chats(options.prompts).values() for prompt in own]
    answers = [own for prompt in prompts for own in write_answers(target, prompt, options.tokens)]
    expected = logits_of(target, answers)
    importance = measure_importance(substitute(target, PLAIN, {}))
    rows = [
        [str(form), *compare(expected, logits_of(substitute(target, form, importance), answers))]
        for form in FORMS
    ]
    columns = ["substitutes", "divergence, nats", "same best token", "same choice at 0.8"]
    values = {"positions": len(expected)}
    title = "Substitutes of a published model, compared with the target"
    table = Table("", columns, rows)
    print_figures(
        Figures("substitutes", title, values, [table], machine=describe_machine()), options
    )


def write_answers(target: Any, prompt: list[int], tokens: int) -> Iterator[Answer]:
    """Yield the target's greedy answer and its answer at temperature 0.8."""
    for sampling in ({"do_sample": False}, {"temperature": TEMPERATURE, "top_k": 0}):
        ids = _generate(target, [prompt], tokens, sampling)
        cache: Any = DynamicCache()
        target.model(ids, past_key_values=cache, use_cache=True)
        known = [(layer.keys, layer.values) for layer in cache.layers]
        yield Answer(ids[0].tolist(), len(prompt), known)


def logits_of(model: Any, answers: Sequence[Answer]) -> Tensor:
    """Return the logits [positions, V] of a model before each token of the answers."""
    found: list[Tensor] = []
    for answer in answers:
        last = len(answer.ids) - 1
        for begin in range(answer.prompt - 1, last, WINDOW):
            rows = torch.tensor([answer.ids[begin : min(begin + WINDOW, last)]])
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(answer.keys_and_values):
                cache.update(keys[:, :, :begin], values[:, :, :begin], layer)
            found.append(model(rows, past_key_values=cache, use_cache=True).logits[0])
    return torch.cat(found).float()


def substitute(target: Any, form: Form, importance: Importance) -> Any:
    """Return a copy of the target with substitutes for its linear layers and its head."""
    model = copy.deepcopy(target)
    for path, layer in _linears(target):
        weight = layer.weight.detach()
        spec = (weight.dtype, tuple(weight.shape))
        wanted = stored_tensors("weight", spec, form.group, CPU, form.kernel)
        fields = {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in wanted.items()}
        store(weight, "weight", fields, importance.get(path) if form.is_fitted else None)
        model.set_submodule(path, linear(fields, "", CPU))
    return model


def measure_importance(model: Any) -> Importance:
    """Return the importance of all input channels, for texts that substitutes write themselves."""
    start = start_tokens(read_tokenizer())
    ids = _generate(model, [start] * NUM_TEXTS, TEXT_TOKENS, {"top_k": 0, "eos_token_id": None})
    with _inputs(model) as inputs:
        model(ids)
    importance: Importance = {}
    for path, rows in inputs.items():
        squares = rows[:, len(start) :].flatten(0, 1).float().square()
        importance[path] = (squares / squares.mean(-1, keepdim=True)).mean(0)
    return importance


def compare(expected: Tensor, found: Tensor) -> list[float]:
    """Return the divergence and the two agreements of logits [positions, V]."""
    target, own = expected.log_softmax(-1), found.log_softmax(-1)
    divergence = (target.exp() * (target - own)).sum(-1).mean()
    noise = -torch.empty(expected.shape).exponential_().log()  # Gumbel noise, one for both
    choices = [(logits / TEMPERATURE + noise).argmax(-1) for logits in (expected, found)]
    same = [expected.argmax(-1) == found.argmax(-1), choices[0] == choices[1]]
    return [float(divergence), *(float(own.float().mean()) for own in same)]


def _generate(model: Any, prompts: list[list[int]], tokens: int, sampling: Any) -> Tensor:
    options = {"do_sample": True, "pad_token_id": 0, **sampling}
    ids: Tensor = model.generate(torch.tensor(prompts), max_new_tokens=tokens, **options)
    return ids


def _linears(model: Any) -> list[tuple[str, nn.Linear]]:
    return [(path, part) for path, part in model.named_modules() if isinstance(part, nn.Linear)]


@contextmanager
def _inputs(model: Any) -> Iterator[dict[str, Tensor]]:
    """Yield the inputs of the model's substitutes, by path, of the latest forward pass."""
    inputs: dict[str, Tensor] = {}
    names = [path for path, part in model.named_modules() if hasattr(part, "scales_and_zeros")]
    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda _, rows, path=path: inputs.__setitem__(path, rows[0])
        )
        for path in names
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    main()
