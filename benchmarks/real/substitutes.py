"""Compare forms of 4-bit substitutes of a published model by how far they are from the target.

    python -m benchmarks.real.substitutes [--json] [--tokens 96] [--prompts 1] [--resume FILE]

This takes two minutes on two cores, much less than counting tokens per pass, and its figures have
less noise. The target answers chats of each kind of text (`benchmarks.real.prompts`), greedily and
at temperature 0.8. Its answers are then run through the substitutes, 24 tokens at a time on the
target's own keys and values of all tokens before, as a draft runs. Columns: the bits that a weight
takes with its share of the scales, the tokens of the answers, the divergence of the target from the
substitutes, how often both have the same most likely token, and how often both choose the same
token at temperature 0.8 with the same noise, as drafts do (`engine.sampling.noise`).

With `--resume` each row is kept in a file as soon as it is measured, and a run that finds rows in
this file measures only the other ones. The figures are the same as those of one run. The file
knows the options, but not the code: after a change of the code, name a new file.
"""

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging as transformers_logging

from benchmarks.command import make_parser, print_figures, print_progress
from benchmarks.real.model import make_model, read_tokenizer
from benchmarks.real.prompts import add_prompts_option
from benchmarks.real.tokens_per_pass import load_chats
from benchmarks.report_format import Figures, Table, format_cell, values_line
from benchmarks.runs import MODELS, describe_machine
from engine.cache_files import replace_file
from engine.drafting.model.importance import NUM_TEXTS, TEXT_TOKENS
from engine.text.chat_start import start_tokens
from engine.weights.formats.linear import Kernel, linear, store, stored_tensors
from engine.weights.layout import TensorSpec

WINDOW = 24  # tokens that are computed on the target's keys and values of all before
TEMPERATURE = 0.8
CPU = torch.device("cpu")

COLUMNS = (
    "substitutes",
    "bits",
    "tokens",
    "divergence, nats",
    "same best token",
    "same choice at 0.8",
)

Importance = dict[str, Tensor]  # the mean square of each input channel, by the layer's path
Row = Sequence[Any]  # a cell for each of the columns


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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, takes_model=False, takes_rounds=False)
    parser.add_argument("--tokens", type=int, default=96, help="of each answer at most")
    add_prompts_option(parser)
    parser.add_argument("--resume", type=Path, metavar="FILE", help="keep rows in this file")
    options = parser.parse_args(arguments)
    settings = {"prompts of each kind": options.prompts, "tokens of an answer": options.tokens}
    try:
        rows = read_rows(options.resume, settings) if options.resume else {}
    except ValueError as error:
        parser.error(str(error))
    missing = [form for form in FORMS if str(form) not in rows]
    for row in measure(options.prompts, options.tokens, missing):
        print_progress(", ".join(map(format_cell, row)))
        rows[row[0]] = row
        if options.resume:
            text = json.dumps(make_figures(settings, rows).to_json())
            replace_file(options.resume, memoryview(text.encode()))
    print_figures(make_figures(settings, rows), options)


def read_rows(path: Path, settings: Mapping[str, int]) -> dict[str, Row]:
    """Return the rows that a file has, by their form. Return none if there is no file.

    Raises `ValueError` if the file is of other settings, has no figures of this benchmark, or could
    not be written.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is not a folder: name a file in one that exists")
    if not path.exists():
        return {}
    try:
        figures = Figures.from_json(json.loads(path.read_bytes()))
        (table,) = figures.tables
        rows = {row[0]: row for row in table.rows}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} has no figures of this benchmark: name another file") from error
    if figures.values != settings or tuple(table.columns) != COLUMNS:
        raise ValueError(
            f"{path} was measured with {values_line(figures.values)} Give these options, or name "
            "another file."
        )
    return rows


def make_figures(settings: Mapping[str, int], rows: Mapping[str, Row]) -> Figures:
    """Return the figures that have these rows, in the order of `FORMS`."""
    table = Table("", COLUMNS, [rows[str(form)] for form in FORMS if str(form) in rows])
    title = "Substitutes of a published model, compared with the target"
    return Figures("substitutes", title, settings, [table], machine=describe_machine())


@torch.inference_mode()
def measure(prompts: int, tokens: int, forms: Sequence[Form]) -> Iterator[Row]:
    """Yield the row of each form, which does not depend on the other forms.

    Args:
        prompts: chats of each kind of text.
        tokens: of each answer at most.
    """
    if not forms:
        return
    logging: Any = transformers_logging  # its functions have no types
    logging.disable_progress_bar()  # it would run into the lines of progress
    torch.manual_seed(0)
    target: Any = AutoModelForCausalLM.from_pretrained(
        make_model(MODELS / "smollm2"), dtype=torch.bfloat16
    )
    answers: list[Answer] = []
    for kind, chats in load_chats(prompts).items():
        print_progress(f"answers of the target: {kind}")
        answers += [own for chat in chats for own in write_answers(target, chat, tokens)]
    expected = logits_of(target, answers)
    print_progress("measuring the inputs of the substitutes")
    importance = measure_importance(substitute(target, PLAIN, {}))
    for form in forms:
        found = logits_of(substitute(target, form, importance), answers)
        bits = bits_per_weight(target, form)
        yield [str(form), bits, len(expected), *compare(expected, found)]


def bits_per_weight(target: Any, form: Form) -> float:
    """Return the bits that substitutes of this form take per weight, their scales included."""
    weights = [layer.weight for _, layer in _linears(target)]
    fields = [field for weight in weights for field in _fields(weight, form).values()]
    bits = sum(8 * math.prod(shape) * dtype.itemsize for dtype, shape in fields)
    return bits / sum(weight.numel() for weight in weights)


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
        wanted = _fields(weight, form)
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
    generator = torch.Generator().manual_seed(0)
    noise = -torch.empty(expected.shape).exponential_(generator=generator).log()  # Gumbel noise
    choices = [(logits / TEMPERATURE + noise).argmax(-1) for logits in (expected, found)]
    same = [expected.argmax(-1) == found.argmax(-1), choices[0] == choices[1]]
    return [float(divergence), *(float(own.float().mean()) for own in same)]


def _fields(weight: Tensor, form: Form) -> dict[str, TensorSpec]:
    """Return the tensors that store the substitute of a weight."""
    spec = (weight.dtype, tuple(weight.shape))
    return stored_tensors("weight", spec, form.group, CPU, form.kernel)


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
