"""Measure models with recurrent layers: prefill, passes of trees, memory, second turns of chats.

    python -m benchmarks.hybrids [--json] [--templates FOLDER]

The hybrid has the proportions of Qwen3.5 27B: three of four layers are recurrent. It is compared
with a llama of as many layers, rows and bytes. Passes of 64 rows are timed in processor seconds of
one thread, with all weights resident. Chats have two turns and are rendered by each template of the
folder; templates of thinking models leave reasoning out of earlier turns.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from benchmarks.command import make_parser, print_figures
from benchmarks.prefill import LONG, MOST_BYTES, MOST_TIME, Prefill, make_prompt, measure_prefill
from benchmarks.random_model import (
    TOKENIZER,
    Shape,
    make_checkpoint,
    random_weight,
    write_checkpoint,
)
from benchmarks.report_format import Bar, Figures, Table
from benchmarks.runs import (
    GREEDY,
    MODELS,
    UNLIMITED_GBPS,
    Session,
    describe_machine,
    drive,
    make_request,
    ram_spec,
    session,
)
from engine.kv.page_pool import PAGE
from engine.model.attention import Batch
from engine.model.library import empty_model
from engine.model.segment import Segment
from engine.recurrent.shape import LayerShape
from engine.spec import TILE, DraftSpec, ModelSpec, StreamSpec

PROMPT = 2000
CONTEXT = 512  # tokens before a tree
NEW_PAGES = 2  # that a second turn may compute again
MOST_PASS, MOST_STATES = 1.3, 1.5
ANSWER = 60
HYBRID: dict[str, Any] = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "hidden_size": 1280,
    "intermediate_size": 4352,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "num_attention_heads": 6,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "linear_num_value_heads": 12,
    "linear_num_key_heads": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "vocab_size": 4096,
    "max_position_embeddings": LONG.context,
    "tie_word_embeddings": False,
    "eos_token_id": 0,
    "bos_token_id": None,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}
LLAMA = Shape(  # as many bytes as the hybrid
    layers=4,
    hidden=1280,
    intermediate=5170,
    heads=20,
    kv_heads=4,
    head_dim=64,
    vocabulary=4096,
    context=LONG.context,
)
_DELTA = LayerShape(
    channels=0,
    taps=4,
    is_activated=True,
    key_heads=16,
    depth=128,
    width=128,
    is_corrected=True,
    is_normalized=True,
)
# The recurrent layers of published models, which are alike in each of them.
PUBLISHED = {
    "Qwen3.5-27B": replace(_DELTA, channels=(2 * 16 + 48) * 128, heads=48),
    "Qwen3-Next-80B-A3B": replace(_DELTA, channels=(2 * 16 + 32) * 128, heads=32),
    "Granite-4.0-H-Small": LayerShape(
        channels=8192 + 2 * 128,
        taps=4,
        is_activated=True,
        heads=128,
        key_heads=1,
        depth=128,
        width=64,
    ),
}


def main() -> None:
    arguments = make_parser(__doc__)
    arguments.add_argument(
        "--templates", type=Path, default=TOKENIZER, help="a folder with chat templates (*.jinja)"
    )
    options = arguments.parse_args()
    figures = measure(options.templates, rounds=options.rounds)
    print_figures(figures, options)


def measure(templates: Path, *, rounds: int) -> Figures:
    """Return the figures of all parts."""
    hybrid, llama = make_hybrid(), make_checkpoint(MODELS / "hybrid-llama", LLAMA)
    passes = measure_passes({"hybrid": hybrid, "attention": llama.folder}, rounds)
    gbps, streamed, compute, alone = measure_prompt(hybrid, rounds)
    turns = measure_turns(hybrid, templates)
    return _make_figures(passes, gbps, streamed, compute, alone, turns, rounds)


def make_hybrid() -> Path:
    """Return the folder of the hybrid, with random weights; the first call writes it."""
    config = AutoConfig.for_model("qwen3_5_text", **HYBRID)
    generator = torch.Generator().manual_seed(0)

    def shards() -> Iterator[dict[str, torch.Tensor]]:
        for name, tensor in empty_model(config, torch.bfloat16).state_dict().items():
            yield {name: random_weight(tuple(tensor.shape), generator)}

    text, recipe = config.to_json_string(use_diff=False), f"random {HYBRID}"
    folder = MODELS / "hybrid"
    return write_checkpoint(folder, text, shards(), tokenizer=TOKENIZER, recipe=recipe).folder


def measure_passes(folders: Mapping[str, Path], rounds: int) -> dict[str, float]:
    """Return the processor seconds of a pass of a tree of 64 rows, for each of the models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds: dict[str, list[float]] = {name: [] for name in folders}
        for _ in range(max(rounds, 2)):  # in turn, so that other load meets both
            for name, folder in folders.items():
                with session(_resident_spec(folder)) as served, torch.inference_mode():
                    run = make_pass(served)
                    run()
                    seconds[name] += [_thread_seconds(run) for _ in range(15)]
        return {name: min(own) for name, own in seconds.items()}
    finally:
        torch.set_num_threads(threads)


def make_pass(served: Session) -> Callable[[], object]:
    """Return a function that runs a tree after a context through the layers of a model."""
    loaded, cache = served.loaded, served.loaded.cache
    context, rows = make_prompt(CONTEXT), make_prompt(TILE)
    table = cache.open(context)
    assert cache.reserve(table, CONTEXT + TILE)
    slots = cache.slots(table)
    parents = [(row - 1) // 2 for row in range(TILE)]
    mask = torch.eye(TILE, dtype=torch.bool)
    depths = [0] * TILE
    for row in range(1, TILE):
        mask[row] |= mask[parents[row]]
        depths[row] = depths[parents[row]] + 1
    places = [*range(CONTEXT), *(CONTEXT + depth for depth in depths)]

    def run(first: int, tokens: list[int], mask: torch.Tensor | None) -> object:
        own = places[first : first + len(tokens)]
        segment = Segment(
            first=0,
            count=len(tokens),
            start=first,
            slots=slots[: first + len(tokens)],
            positions=torch.tensor(own),
            mask=mask,
            cancelled=Event(),
            state=table.state,
        )
        batch = Batch(loaded.cache.pool, (segment,), range(len(tokens)), strict=True)
        hidden = loaded.decoder.forward(tokens, own, batch)
        loaded.stream.seek()  # the head is not computed
        return hidden

    run(0, context, None)
    cache.append_rows(table, range(CONTEXT))
    return lambda: run(CONTEXT, rows, mask)


def measure_prompt(
    folder: Path, rounds: int
) -> tuple[float, int, Sequence[float], Sequence[Prefill]]:
    """Measure a prompt with an unlimited link, and one for which W/B is its compute, in turn.

    Return the bandwidth, W, the times without limit, and the prompts with it.
    """
    with session(ram_spec(folder, DraftSpec("none"), gbps=UNLIMITED_GBPS, max_sequences=2)) as free:
        measure_prefill(free, PROMPT)  # allocates the buffers
        balance = statistics.median(measure_prefill(free, PROMPT).seconds for _ in range(3))
        gbps = free.streamed_bytes / balance / 1e9
        limited_spec = ram_spec(folder, DraftSpec("none"), gbps=gbps, max_sequences=2)
        with session(limited_spec) as limited:
            measure_prefill(limited, 100)
            compute, alone = [], []
            for _ in range(rounds):
                compute.append(measure_prefill(free, PROMPT).seconds)
                alone.append(measure_prefill(limited, PROMPT))
    return gbps, free.streamed_bytes, compute, alone


def measure_turns(folder: Path, templates: Path) -> list[tuple[str, int, int, int]]:
    """Return for each template: the second turn's tokens, the new ones, those computed."""
    tokenizer: Any = AutoTokenizer.from_pretrained(TOKENIZER)
    spec = replace(_resident_spec(folder), prefix_cache=True)
    question = {"role": "user", "content": "Why do fish not drown? " * 20}
    found = []
    with session(spec) as served:
        for path in sorted(templates.rglob("*.jinja")):
            template = path.read_text(encoding="utf-8")

            def render(messages: list[dict[str, str]], template: str = template) -> list[int]:
                text = tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=True
                )
                return list(tokenizer.encode(text, add_special_tokens=False))

            first = render([question])
            params = replace(GREEDY, max_tokens=ANSWER)
            run = drive(served, [make_request(f"{path.stem} 1", first, params)])
            answer = list(run.tokens_of(f"{path.stem} 1"))
            text = tokenizer.decode(answer)
            reply = {"role": "assistant", "content": text, "reasoning_content": text}
            second = render([question, reply, {"role": "user", "content": "And birds? " * 30}])
            common = _common([*first, *answer], second)
            run = drive(served, [make_request(f"{path.stem} 2", second, params)])
            cached = run.finished[f"{path.stem} 2"].cached_tokens
            found.append((path.stem, len(second), len(second) - common, len(second) - cached))
    return found


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two texts have in common from the first one on."""
    pairs = zip(first, second, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _thread_seconds(run: Callable[[], object]) -> float:
    began = time.thread_time()
    run()
    return time.thread_time() - began


def _resident_spec(folder: Path) -> ModelSpec:
    spec = ram_spec(folder, DraftSpec("ngram", budget=TILE), gbps=None, max_sequences=2)
    return replace(spec, stream=StreamSpec(tier="resident"))


def _make_figures(
    passes: Mapping[str, float],
    gbps: float,
    streamed: int,
    compute: Sequence[float],
    alone: Sequence[Prefill],
    turns: Sequence[tuple[str, int, int, int]],
    rounds: int,
) -> Figures:
    needed, taken = statistics.median(compute), statistics.median(run.seconds for run in alone)
    travelled = statistics.median(run.bytes for run in alone) / streamed
    link = streamed / gbps / 1e9  # W/B
    overlap = taken / max(link, needed)
    ratio = passes["hybrid"] / passes["attention"]
    most = max(_with_tree(shape) for shape in PUBLISHED.values())
    again = max((computed - new for _, _, new, computed in turns), default=0)
    prompt = Table(
        f"A prompt of {PROMPT} tokens, medians",
        ["bytes / W", "first token s", "W/B s", "compute s"],
        [[travelled, taken, link, needed]],
    )
    return Figures(
        name="hybrids",
        title="Models with recurrent layers",
        values={"link_gbps": gbps, "w_bytes": streamed, "rounds": rounds},
        tables=[prompt, *_make_tables(passes, turns)],
        bars=[
            Bar(f"{PROMPT} tokens: bytes / W", travelled, "<=", MOST_BYTES),
            Bar(f"{PROMPT} tokens: time / max(W/B, compute)", overlap, "<=", MOST_TIME),
            Bar("64 rows: time of the hybrid over that of attention", ratio, "<=", MOST_PASS, "x"),
            Bar("states with a tree of 64 rows over those alone", most, "<=", MOST_STATES, "x"),
            Bar("second turn: tokens computed beside the new ones", again, "<=", NEW_PAGES * PAGE),
        ],
        machine=describe_machine(),
    )


def _make_tables(
    passes: Mapping[str, float], turns: Sequence[tuple[str, int, int, int]]
) -> list[Table]:
    memory = [
        [
            name,
            shape.state_bytes(torch.bfloat16) / 1e6,
            shape.stash_bytes(torch.bfloat16) / 1e3,
            _with_tree(shape),
        ]
        for name, shape in PUBLISHED.items()
    ]
    return [
        Table(
            "A pass of 64 rows, processor ms",
            ["model", "ms"],
            [[name, own * 1e3] for name, own in passes.items()],
        ),
        Table(
            "Memory of a recurrent layer",
            ["model", "state MB", "row of a tree KB", "with 64 rows, of the state"],
            memory,
        ),
        Table(
            "The second turn of a chat, prompt tokens",
            ["template", "prompt", "new", "computed"],
            [list(turn) for turn in turns],
        ),
    ]


def _with_tree(shape: LayerShape) -> float:
    """Return the memory of a layer's state with a tree of 64 rows over that of the state alone."""
    state, row = shape.state_bytes(torch.bfloat16), shape.stash_bytes(torch.bfloat16)
    return 1 + TILE * row / state


if __name__ == "__main__":
    main()
