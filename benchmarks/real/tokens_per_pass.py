"""Count the tokens per pass on a published model, by drafting method and kind of text.

    python -m benchmarks.real.tokens_per_pass [--json] [--tokens 256] [--prompts 1] [--forecast]
        [--methods METHOD ...]

The model is SmolLM2-135M-Instruct with the error of its quantization put back (see
`benchmarks.real.model`); `make build/real/.installed` installs it. Answers are greedy, and sampled
at temperature 0.8 with one seed, and each one must equal plain decoding's. Trees always grow up to
their bounds, so that the figures do not depend on this machine's speed; "64 rows" has a budget of
64 rows in place of 256. `--methods` takes two more, "subspec, unfitted" and "subspec, 64 rows,
unfitted", whose 4-bit copies are not fitted to the inputs of their layers.

With `--forecast` the speed that `understudy plan` forecasts for each method is compared with the
measured speed, over a simulated link of 1 GB/s and with trees as they are served.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.command import make_parser, print_figures, print_progress
from benchmarks.real.model import make_model, read_tokenizer, render
from benchmarks.real.prompts import PROMPTS, add_prompts_option
from benchmarks.report_format import Figures, Table
from benchmarks.runs import MODELS, Run, describe_machine, drive, ram_spec, session
from engine.errors import EngineError
from engine.messages import Generate, SamplingParams
from engine.planning.preview import WhatIf, preview
from engine.spec import DraftSpec, ModelSpec

PLAIN = "none"
SUBSPEC = DraftSpec("subspec", tuned=False)
METHODS: Mapping[str, DraftSpec] = {
    PLAIN: DraftSpec(PLAIN),
    "ngram": DraftSpec("ngram", tuned=False),
    "recycling": DraftSpec("recycling", tuned=False),
    "subspec": SUBSPEC,
    "subspec, 64 rows": replace(SUBSPEC, budget=64),
}
UNFITTED: Mapping[str, DraftSpec] = {
    f"{name}, unfitted": replace(METHODS[name], calibrate=False)
    for name in ("subspec", "subspec, 64 rows")
}
SAMPLINGS = {"0": SamplingParams(temperature=0.0), "0.8": SamplingParams(temperature=0.8, seed=7)}
LINK_GBPS = 1.0  # of the simulated link for the forecast
AT_ONCE = 6  # answers that share passes, which changes neither their tokens nor their trees

Chats = Mapping[str, Sequence[list[int]]]  # the token ids of the prompts, by kind of text
Answers = dict[str, tuple[tuple[int, ...], int]]  # tokens and passes of each answer, by its name


def main() -> None:
    parser = make_parser(__doc__, takes_model=False, takes_rounds=False)
    parser.add_argument("--tokens", type=int, default=256, help="of each answer at most")
    add_prompts_option(parser)
    known = {**METHODS, **UNFITTED}
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(known))
    parser.add_argument("--forecast", action="store_true", help="measure the speed, too")
    options = parser.parse_args()
    chats = load_chats(options.prompts)
    methods = {name: known[name] for name in options.methods}
    columns, rows = measure(methods, chats, options.tokens)
    columns.remove("temperature")
    caption = f"At temperatures {', '.join(SAMPLINGS)}"
    tables = [Table(caption, columns, join_temperatures(rows))]
    if options.forecast:
        caption = f"Forecast and measured speed, link of {LINK_GBPS} GB/s, temperature 0"
        tables.append(Table(caption, *compare_forecasts(methods, chats, options.tokens)))
    title = "Tokens per pass of a published model, SmolLM2-135M-Instruct"
    values = {"tokens": options.tokens, "prompts": options.prompts}
    print_figures(Figures("real", title, values, tables, machine=describe_machine()), options)


def load_chats(count: int) -> Chats:
    """Return the first `count` prompts of each kind, rendered by the model's chat template."""
    tokenizer = read_tokenizer()
    return {kind: [render(tokenizer, p) for p in own[:count]] for kind, own in PROMPTS.items()}


def measure(
    methods: Mapping[str, DraftSpec], chats: Chats, tokens: int
) -> tuple[list[str], list[list[str | float]]]:
    """Return the headings and the rows of tokens per pass, a row for each method and temperature.

    Raises `EngineError` if an answer differs from the answer of plain decoding.
    """
    expected: dict[str, dict[str, tuple[int, ...]]] = {}
    rows: list[list[str | float]] = []
    for method, draft in {PLAIN: METHODS[PLAIN], **methods}.items():
        with session(make_spec(draft, None, AT_ONCE)) as served:
            for sampling, params in SAMPLINGS.items():
                params = replace(params, max_tokens=tokens)
                runs = [drive(served, own) for own in _requests(chats, params, AT_ONCE)]
                answers = _answers(runs)
                ids = {name: own for name, (own, _) in answers.items()}
                if expected.setdefault(sampling, ids) != ids:
                    raise EngineError(f"{method}: an answer differs from plain decoding's")
                paces = [_pace(answers, kind) for kind in chats]
                pace = _pace(answers, "")
                rows.append([method, sampling, *paces, pace])
                print_progress(f"{method}, temperature {sampling}: {pace:.2f} tokens per pass")
    return ["method", "temperature", *chats, "all"], rows


def join_temperatures(rows: Sequence[Sequence[str | float]]) -> list[list[str]]:
    """Return the rows of `measure` with one row for each method, all temperatures in a cell."""
    paces: dict[str, list[Sequence[str | float]]] = {}
    for method, _, *own in rows:
        paces.setdefault(str(method), []).append(own)
    return [
        [method, *(", ".join(f"{pace:.1f}" for pace in cell) for cell in zip(*own, strict=True))]
        for method, own in paces.items()
    ]


def compare_forecasts(
    methods: Mapping[str, DraftSpec], chats: Chats, tokens: int
) -> tuple[list[str], list[list[str | float]]]:
    """Return the headings and the rows of forecast and measured speed, a row for each method."""
    rows: list[list[str | float]] = []
    for method, draft in methods.items():
        spec = make_spec(replace(draft, tuned=True), LINK_GBPS, 1)
        forecast = preview(spec, WhatIf()).scheme.forecast
        with session(spec) as served:
            params = replace(SAMPLINGS["0"], max_tokens=tokens)
            runs = [drive(served, own) for own in _requests(chats, params, 1)]
        speed = sum(run.num_tokens for run in runs) / sum(run.seconds for run in runs)
        pace = _pace(_answers(runs), "")
        own = [forecast.tokens_per_pass, pace, forecast.tokens_per_second, speed]
        rows.append([method, *own])
    named = ("tokens per pass", "tokens/s")
    return [
        "method",
        *(f"{name}, {how}" for name in named for how in ("forecast", "measured")),
    ], rows


def make_spec(draft: DraftSpec, gbps: float | None, max_sequences: int) -> ModelSpec:
    """Return the specification of the model with this draft, all of its layers streamed."""
    folder = make_model(MODELS / "smollm2")
    spec = ram_spec(folder, draft, gbps=gbps, max_sequences=max_sequences)
    return replace(spec, context_length=1024)


def _requests(chats: Chats, params: SamplingParams, at_once: int) -> list[list[Generate]]:
    """Return the requests in parts that run at once. Their names begin with the kind of text."""
    requests = [
        Generate(f"{kind} {number}", tuple(prompt), params)
        for kind, prompts in chats.items()
        for number, prompt in enumerate(prompts)
    ]
    return [requests[i : i + at_once] for i in range(0, len(requests), at_once)]


def _answers(runs: Sequence[Run]) -> Answers:
    """Return the tokens and passes of each answer, the prompt's pass included."""
    return {
        name: (run.tokens_of(name), stats.passes)
        for run in runs
        for name, stats in run.finished.items()
    }


def _pace(answers: Answers, kind: str) -> float:
    """Return the tokens per pass of a kind of text; of all kinds for ""."""
    own = [answer for name, answer in answers.items() if name.startswith(kind)]
    return sum(len(ids) for ids, _ in own) / sum(passes for _, passes in own)


if __name__ == "__main__":
    main()
