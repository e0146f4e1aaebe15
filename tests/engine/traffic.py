"""Random traffic for one engine, made from a seed, with checks of its invariants."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch

from engine.drafting.tree import Bounds, DraftTree
from engine.errors import ModelError
from engine.kv.page_pool import PAGE
from engine.messages import Failed, Generate, Speculation, ThinkingBudget, Tokens
from engine.planning.plan import Plan, make_plan
from engine.runtime.engine import Engine
from engine.sampling.large_vocabularies.blocks import Matrix
from engine.sequences.sequence import TokenSequence
from engine.spec import DraftSpec, StreamSpec
from tests.engine.books import check_books, check_idle
from tests.engine.grammars import lark
from tests.engine.hybrids import HYBRIDS
from tests.engine.limits import limit, with_plenty
from tests.engine.models import (
    VOCAB,
    Answer,
    Answers,
    checkpoint,
    hooks,
    load,
    request as make_request,
    run as serve,
)

FAMILIES = ["llama", "mistral_window", "phi3_longrope", "gemma2", "gpt_oss"]
MODELS = ["specexec", "subspec", "merged"]  # drafts that the target often accepts
DRAFTERS = [*MODELS, *MODELS, "noise", "ngram", "guesses"]
METHODS = [*[None] * 9, "none", "ngram", "recycling", "guesses", "specexec", "subspec"]
MAX_ROWS = [*[None] * 6, 1, 2, 7]
GRAMMARS = [lark("start: /[a-z]{9,}-[0-9]+/"), lark('start: ("abcdefgh" | /[A-Z]+/ "=")+ "."')]
LONGEST = 200  # tokens of a prompt
STEPS = 3000  # limit of passes, which no traffic here reaches


@dataclass(frozen=True)
class Scene:
    """The settings of one engine and of its traffic."""

    family: str
    drafter: str
    num_pages: int
    max_sequences: int
    num_requests: int
    prefix_cache: bool
    abort: float  # chance of an abort in a step
    fail: float  # chance of a unit that cannot be read in a step
    host_pages: int
    tuned: bool
    ahead: float  # chance of a further draft step while the engine waits for a unit
    bounds: Bounds
    dtype: torch.dtype = torch.float32  # of the target's weights
    resident: int = 0  # layers that were loaded to the device
    move: float = 0.0  # chance of other limits of memory before a step


def scene(chance: random.Random, families: Sequence[str] = FAMILIES) -> Scene:
    family = chance.choice(families)
    drafters = DRAFTERS
    if family in HYBRIDS:
        models = [*["subspec"] * 3, "specexec", "specexec", "merged", "other"]
        drafters = [*models, "noise", "ngram", "guesses", "guesses", "guesses"]
    return Scene(
        family=family,
        drafter=chance.choice(drafters),
        num_pages=chance.choice([3, 4, 5, 6, 8, 12, 24, 40]),
        max_sequences=chance.choice([1, 2, 3, 4, 8]),
        num_requests=chance.randint(3, 9),
        prefix_cache=chance.random() < 0.85,
        abort=chance.choice([0.0, 0.0, 0.05, 0.2]),
        fail=chance.choice([0.0, 0.0, 0.0, 0.05]),
        host_pages=chance.choice([0, 0, 2, 30]),
        tuned=chance.random() < 0.25,
        ahead=chance.choice([0.0, 0.7, 0.9, 0.9]),
        bounds=Bounds(
            depth=chance.choice([1, 2, 4, 8]),
            width=chance.choice([1, 3, 6]),
            branch=chance.choice([1, 3, 6]),
            budget=chance.choice([1, 8, 24, 24, 40, 40, 60]),
        ),
        resident=chance.choice([0, 1, 2, 3]),
        move=chance.choice([0.0, 0.1, 0.4]),
    )


def draft_spec(what: Scene) -> DraftSpec:
    bounds: dict[str, Any] = {**vars(what.bounds), "tuned": what.tuned}
    match what.drafter:
        case "subspec":
            return DraftSpec("subspec", **bounds)
        case "specexec" | "merged":
            folder = checkpoint(what.family, what.dtype)
            return DraftSpec("specexec", source=str(folder), **bounds)
        case "other":
            folder = checkpoint(what.family, what.dtype, seed=9)
            return DraftSpec("specexec", source=str(folder), **bounds)
        case "noise":
            other = checkpoint("llama", seed=9, layers=1)
            return DraftSpec("specexec", source=str(other), **bounds)
        case _:
            return DraftSpec("ngram", depth=6, width=1, branch=1, budget=24, tuned=what.tuned)


@contextmanager
def pages(number: int, host: int) -> Iterator[None]:
    """Give models that are loaded within this block these numbers of KV pages."""

    def fewer(*arguments: Any) -> Plan:
        plan = make_plan(*arguments)
        rows = min(plan.max_rows, number * PAGE)
        return replace(plan, num_pages=number, host_pages=host, max_rows=rows)

    with patch("engine.planning.choice.make_plan", fewer):
        yield


def prompts(chance: random.Random, count: int, longest: int) -> list[list[int]]:
    """Return prompts, many of which share a prefix that may end at a page boundary."""
    stems = [[chance.randrange(3, VOCAB) for _ in range(LONGEST)] for _ in range(2)]
    made = []
    for _ in range(count):
        shared = chance.choice([0, 1, 30, 31, 63, 64, 65, 128, 129, chance.randrange(LONGEST)])
        own = chance.choice([0, 1, 2, chance.randrange(1, 40)])
        made.append(chance.choice(stems)[:shared] + chance.choices(range(3, VOCAB), k=own))
    return [(tokens or [5])[:longest] for tokens in made]


def sampling(chance: random.Random) -> dict[str, Any]:
    params: dict[str, Any] = {
        "temperature": chance.choice([0.0, 0.7, 1.0, 1.5]),
        "seed": chance.getrandbits(64),
        "ignore_eos": chance.random() < 0.7,
        "max_tokens": chance.choice([1, 2, 8, 20, 40, 70]),
        "min_tokens": chance.choice([0, 0, 0, 5]),
        "logprobs": chance.choice([None, None, 0, 3]),
        "prompt_logprobs": chance.choice([None, None, None, 2]),
    }
    if chance.random() < 0.25:
        params |= {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2}
    if chance.random() < 0.3:
        params["top_p"] = 0.9
    if chance.random() < 0.2:
        params["top_k"] = 8
    if chance.random() < 0.2:
        params["logit_bias"] = ((7, 2.0), (11, -50.0))
    if chance.random() < 0.25:
        params["grammar"] = chance.choice(GRAMMARS)
    if chance.random() < 0.25:
        params["thinking"] = thinking(chance)
    return params


def thinking(chance: random.Random) -> ThinkingBudget:
    """Return a budget whose marks are `[` and `]`, the tokens 58 and 60 of the tiny checkpoints."""
    return ThinkingBudget(
        tokens=chance.choice([0, 1, 3, 9]),
        begin=chance.choice(["", "", "["]),
        end="]",
        closings=((58, 60, 61), (60, 62)),
        repeats=chance.random() < 0.5,
    )


def requests(chance: random.Random, what: Scene, plain: Engine) -> tuple[list[Generate], Answers]:
    """Return random requests, and the answers of a plain engine to each of them alone."""
    most = min(what.num_pages * PAGE, plain.info.context_length)
    asked: list[Generate] = []
    want: Answers = {}
    for index, tokens in enumerate(prompts(chance, what.num_requests, most - 1)):
        params = sampling(chance)
        params["max_tokens"] = min(params["max_tokens"], most - len(tokens))
        n = chance.choice([1, 1, 1, 2, 3])
        message = make_request(str(index), tokens, n=n, key=chance.choice("ab"), **params)
        got = serve(plain, [message])
        some = chance.choice(list(got.values()))
        stops: dict[str, Any] = {}
        if chance.random() < 0.3 and some.text:
            first = chance.randrange(len(some.text))
            stops["stop"] = (some.text[first : first + chance.randint(1, 3)], "no such text")
        if chance.random() < 0.2:
            stops["stop_token_ids"] = (chance.choice(some.ids),)
        if stops:
            message = replace(message, params=replace(message.params, **stops))
            got = serve(plain, [message])
        guess = [*chance.choice(list(got.values())).ids, *tokens[:9]]
        for _ in range(chance.randrange(4)):
            guess[chance.randrange(len(guess))] = chance.randrange(VOCAB)
        speculation = Speculation(chance.choice(METHODS), chance.choice(MAX_ROWS))
        prediction = tuple(guess) if chance.random() < 0.4 else ()
        asked.append(replace(message, speculation=speculation, prediction=prediction))
        want |= got
    return asked, want


class Guesses:
    """A look-up that knows the answers, and proposes them among wrong guesses at random rows."""

    name = "guesses"

    def __init__(self, want: Answers, chance: random.Random) -> None:
        self._want = want
        self._chance = chance

    def propose(self, sequence: TokenSequence, depth: int, rows: int) -> DraftTree:
        answer = self._want[(sequence.request_id, sequence.choice)].ids
        rest = answer[len(sequence.tokens) - sequence.num_prompt :]
        tokens, parents, depths = [sequence.tokens[-1]], [-1], [0]
        right = 0  # the last row of the path that is right
        for _ in range(self._chance.randrange(min(rows, 24))):
            known = right if self._chance.random() < 0.5 else self._chance.randrange(len(tokens))
            level = depths[known] + 1
            is_next = known == right and level <= len(rest) and self._chance.random() < 0.7
            token = rest[level - 1] if is_next else self._chance.randrange(VOCAB)
            edges = zip(parents, tokens, strict=True)
            if level > depth or (known, token) in edges:
                continue
            if known == right and level <= len(rest) and token == rest[level - 1]:
                right = len(tokens)
            tokens.append(token)
            parents.append(known)
            depths.append(level)
        scores = tuple(-float(level) for level in depths)
        sources = ("", *(self.name,) * (len(tokens) - 1))
        return DraftTree(tuple(tokens), tuple(parents), tuple(depths), scores, sources)

    def observe(self, tokens: Sequence[int], logits: Matrix) -> None:
        """Ignore the tokens: this look-up learns nothing."""

    def release(self, sequence: TokenSequence) -> None:
        """Do nothing: this look-up keeps no state of a sequence."""


def open_engine(what: Scene, want: Answers, chance: random.Random) -> Engine:
    with pages(what.num_pages, what.host_pages):
        made = load(
            checkpoint(what.family, what.dtype),
            draft_spec(what),
            max_sequences=what.max_sequences,
            prefix_cache=what.prefix_cache,
            stream=StreamSpec(tier="ram", slots=2, resident=what.resident),
        )
    with_plenty(made)
    drafting = made._drafting
    if what.drafter == "guesses":
        drafting._lookups = [Guesses(want, chance)]
        drafting._bounds = Bounds(depth=24, width=1, branch=1, budget=24)
    if what.drafter == "merged":
        drafting._lookups = [*drafting._lookups, Guesses(want, chance)]
    _pretend_times(drafting.policy, chance)
    return made


def _pretend_times(policy: Any, chance: random.Random) -> None:
    """Set random times of steps in place of measured ones: some drafts pay, others do not."""
    for rows in (1, 4, 16):
        policy.draft.observe(rows, chance.choice([0.01, 0.1, 1.0]))
    for rows in (64, 256):
        policy.passes.observe(rows, chance.choice([0.1, 1.0, 9.0]), chance.choice([0.1, 9.0]))
    policy.draft.observe = policy.passes.observe = lambda *_: None


@dataclass
class Traffic:
    """The requests that are sent to an engine, and the answers so far."""

    engine: Engine
    asked: list[Generate]
    want: Answers
    chance: random.Random
    what: Scene
    got: Answers = field(default_factory=dict)
    left: set[str] = field(default_factory=set)  # requests whose clients have left
    failed: set[str] = field(default_factory=set)
    passes: int = 0
    ahead: int = 0  # draft steps during passes
    moves: int = 0  # of units of weights

    def run(self) -> None:
        """Serve all requests, and check every step. Raise AssertionError if a check fails."""
        coming = list(self.asked)
        for _ in range(STEPS):
            while coming and (self.chance.random() < 0.3 or not self.engine.has_work()):
                self.engine.add(coming.pop(0))
            if not coming and not self.engine.has_work():
                self._check_answers()
                check_idle(self.engine)
                return
            if self.chance.random() < self.what.move:
                shares = self.chance.choices([0.0, 0.3, 0.6, 1.0], k=2)
                self.moves += limit(self.engine, *shares)
            with self._random_failures():
                events = self.engine.step()
            self.passes += 1
            for event in events:
                self._take(event)
            check_books(self.engine)
        raise AssertionError(f"requests are unfinished after {STEPS} steps")

    @contextmanager
    def _random_failures(self) -> Iterator[None]:
        """Make clients leave before or within the step, or a unit unreadable, at random."""
        stream: Any = self.engine._loaded.stream
        own = stream.unit
        if self.chance.random() < self.what.abort:
            at = self.chance.randint(0, 8)
            hooks(self.engine).on_unit = self._leaving(at)
            if at == 0:
                hooks(self.engine).on_pass_progress()
        broken = self.chance.randrange(4) if self.chance.random() < self.what.fail else None

        def unit(index: int, on_wait: Any = None) -> Any:
            """Draft as the engine does while weights travel, and return or fail the unit."""
            while self.chance.random() < self.what.ahead:
                self.ahead += self.engine._drafting.draft_ahead(1e9)
            return _fail() if index == broken else own(index, on_wait)

        stream.unit = unit
        try:
            yield
        finally:
            stream.unit = own
            hooks(self.engine).on_unit = None

    def _leaving(self, at: int) -> Callable[[int], None]:
        """Return a hook by which some clients leave before the unit number `at` from now."""
        names = [message.request_id for message in self.asked]
        going = self.chance.sample(names, self.chance.randint(1, len(names)))
        if self.chance.random() < 0.6:
            going = going[:1]
        seen = [0]

        def abort_some(_: int) -> None:
            seen[0] += 1
            if seen[0] >= at:
                for name in going:
                    if name in self.engine._requests._by_id:
                        self.left.add(name)
                        self.engine.abort(name)

        return abort_some

    def _take(self, event: Tokens | Failed) -> None:
        if isinstance(event, Failed):
            assert event.code == "weights_unreadable"
            self.failed.add(event.request_id)
            return
        assert event.request_id not in self.failed, "tokens came after the failure"
        self.got.setdefault((event.request_id, event.choice), Answer()).take(event)

    def _check_answers(self) -> None:
        for key, want in self.want.items():
            got = self.got.get(key, Answer())
            if got.finish is None:
                assert key[0] in self.left | self.failed, f"{key} was never answered"
                assert want.ids[: len(got.ids)] == got.ids, key
                assert want.text.startswith(got.text), key
                continue
            assert got.exact == want.exact, f"{key}: {got.exact} instead of {want.exact}"
            assert got.stats is not None and want.stats is not None
            for figure in ("prompt_tokens", "completion_tokens"):
                assert getattr(got.stats, figure) == getattr(want.stats, figure), key
            assert got.stats.cached_tokens < got.stats.prompt_tokens
            assert got.stats.accepted <= got.stats.drafted
            for message in self.asked:
                if message.request_id == key[0] and message.params.min_tokens == 0:
                    assert not any(stop in got.text for stop in message.params.stop), key


def _fail() -> Any:
    raise ModelError("model.layers: its weights could not be read")
