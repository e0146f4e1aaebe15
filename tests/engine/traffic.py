"""Random traffic against one engine, made from a seed, and what must hold throughout."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

from engine.engine import Engine
from engine.errors import ModelError
from engine.kv_cache import PAGE, KVCache, PageTable
from engine.messages import Failed, Generate, Tokens
from engine.plan import Plan, make_plan
from engine.sequence import Sequence as Running
from engine.spec import DraftSpec
from engine.tree import DraftTree
from tests.engine.models import SMALL, SUBSPEC, VOCAB, Answer, Answers, checkpoint, load
from tests.engine.models import request as make_request
from tests.engine.models import run as serve

FAMILIES = ["llama", "mistral_window", "phi3_longrope", "gemma2", "gpt_oss"]
DRAFTERS = ["specexec", "noise", "subspec", "ngram", "guesses"]
LONGEST = 200  # tokens of a prompt
STEPS = 3000  # no traffic here needs so many passes


@dataclass(frozen=True)
class Scene:
    """One engine and what happens to it."""

    family: str
    drafter: str
    num_pages: int
    max_sequences: int
    num_requests: int
    prefix_cache: bool
    abort: float  # chance of an abort in a step
    fail: float  # chance of a unit that cannot be read in a step


def scene(chance: random.Random) -> Scene:
    family = chance.choice(FAMILIES)
    drafters = [name for name in DRAFTERS if name != "subspec" or family != "gpt_oss"]
    return Scene(
        family=family,
        drafter=chance.choice(drafters),
        num_pages=chance.choice([3, 4, 5, 6, 8, 12, 24, 40]),
        max_sequences=chance.choice([1, 2, 3, 4, 8]),
        num_requests=chance.randint(3, 9),
        prefix_cache=chance.random() < 0.85,
        abort=chance.choice([0.0, 0.0, 0.05, 0.2]),
        fail=chance.choice([0.0, 0.0, 0.0, 0.05]),
    )


def draft_spec(drafter: str, family: str) -> DraftSpec:
    match drafter:
        case "subspec":
            return SUBSPEC
        case "specexec":
            return DraftSpec("specexec", source=str(checkpoint(family)), **SMALL)
        case "noise":
            other = checkpoint("llama", seed=9, layers=1)
            return DraftSpec("specexec", source=str(other), **SMALL)
        case _:
            return DraftSpec("ngram", depth=6, width=1, branch=1, budget=24)


@contextmanager
def pages(number: int) -> Iterator[None]:
    """Models loaded inside get so many KV pages, whatever the plan would give."""

    def fewer(*arguments: Any) -> Plan:
        plan = make_plan(*arguments)
        return replace(plan, num_pages=number, max_rows=min(plan.max_rows, number * PAGE))

    with patch("engine.load.make_plan", fewer):
        yield


def prompts(chance: random.Random, count: int, longest: int) -> list[list[int]]:
    """Prompts of which many begin alike, at page borders too."""
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
    }
    if chance.random() < 0.25:
        params |= {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2}
    if chance.random() < 0.3:
        params["top_p"] = 0.9
    if chance.random() < 0.2:
        params["top_k"] = 8
    if chance.random() < 0.2:
        params["logit_bias"] = ((7, 2.0), (11, -50.0))
    return params


def requests(chance: random.Random, what: Scene, plain: Engine) -> tuple[list[Generate], Answers]:
    """What is asked for, and what a plain engine answers to each alone."""
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
        asked.append(message)
        want |= got
    return asked, want


class Guesses:
    """A drafter that knows the answers and hides them among wrong guesses, at any row."""

    def __init__(self, want: Answers, chance: random.Random) -> None:
        self._want = want
        self._chance = chance

    def propose(self, sequences: Sequence[Running], rooms: Sequence[int]) -> list[DraftTree]:
        return [self._tree(s, room) for s, room in zip(sequences, rooms, strict=True)]

    def _tree(self, sequence: Running, room: int) -> DraftTree:
        answer = self._want[(sequence.request.message.request_id, sequence.choice)].ids
        rest = answer[len(sequence.tokens) - sequence.num_prompt :]
        tokens, parents, depths = [sequence.tokens[-1]], [-1], [0]
        right = 0  # the row down to which all is right
        for _ in range(self._chance.randrange(min(room, 24))):
            known = right if self._chance.random() < 0.5 else self._chance.randrange(len(tokens))
            depth = depths[known] + 1
            is_next = known == right and depth <= len(rest) and self._chance.random() < 0.7
            token = rest[depth - 1] if is_next else self._chance.randrange(VOCAB)
            edges = zip(parents, tokens, strict=True)
            if depth > sequence.max_draft_depth or (known, token) in edges:
                continue
            if known == right and depth <= len(rest) and token == rest[depth - 1]:
                right = len(tokens)
            tokens.append(token)
            parents.append(known)
            depths.append(depth)
        scores = tuple(-float(depth) for depth in depths)
        return DraftTree(tuple(tokens), tuple(parents), tuple(depths), scores)

    def commit(self, sequence: Running, rows: Sequence[int]) -> None:
        """Nothing is kept."""

    def release(self, sequence: Running) -> None:
        """Nothing is kept."""


def open_engine(what: Scene, want: Answers, chance: random.Random) -> Engine:
    with pages(what.num_pages):
        made = load(
            checkpoint(what.family),
            draft_spec(what.drafter, what.family),
            max_sequences=what.max_sequences,
            prefix_cache=what.prefix_cache,
        )
    if what.drafter == "guesses":
        made._drafter = Guesses(want, chance)
        made._scheduler.release = made._drafter.release
    return made


@dataclass
class Traffic:
    """Requests on their way through an engine."""

    engine: Engine
    asked: list[Generate]
    want: Answers
    chance: random.Random
    what: Scene
    got: Answers = field(default_factory=dict)
    left: set[str] = field(default_factory=set)  # their clients left
    failed: set[str] = field(default_factory=set)
    passes: int = 0

    def run(self) -> None:
        """Serve all of it, checking on the way. Raises AssertionError."""
        coming = list(self.asked)
        for _ in range(STEPS):
            while coming and (self.chance.random() < 0.3 or not self.engine.has_work()):
                self.engine.add(coming.pop(0))
            if not coming and not self.engine.has_work():
                self._check_answers()
                check_idle(self.engine)
                return
            with self._trouble():
                events = self.engine.step()
            self.passes += 1
            for event in events:
                self._take(event)
            check_pages(self.engine)
        raise AssertionError(f"not through after {STEPS} steps")

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        """A client that leaves before the step or inside it; a unit that cannot be read."""
        stream: Any = self.engine._loaded.stream
        own = stream.unit
        if self.chance.random() < self.what.abort:
            at = self.chance.randint(0, 8)
            self.engine.on_unit = self._leaving(at)
            if at == 0:
                self.engine.on_unit(0)
        if self.chance.random() < self.what.fail:
            broken = self.chance.randrange(4)
            stream.unit = lambda index: _fail() if index == broken else own(index)
        try:
            yield
        finally:
            stream.unit = own
            self.engine.on_unit = None

    def _leaving(self, at: int) -> Callable[[int], None]:
        """Some clients leave at the border number `at` from now."""
        names = [message.request_id for message in self.asked]
        going = self.chance.sample(names, self.chance.randint(1, len(names)))
        if self.chance.random() < 0.6:
            going = going[:1]
        seen = [0]

        def border(_: int) -> None:
            seen[0] += 1
            if seen[0] >= at:
                for name in going:
                    if name in self.engine._requests:
                        self.left.add(name)
                        self.engine.abort(name)

        return border

    def _take(self, event: Tokens | Failed) -> None:
        if isinstance(event, Failed):
            assert event.code == "weights_unreadable"
            self.failed.add(event.request_id)
            return
        assert event.request_id not in self.failed, "nothing comes after the failure"
        answer = self.got.setdefault((event.request_id, event.choice), Answer())
        assert answer.finish is None, "nothing comes after the finish"
        answer.ids += event.ids
        answer.text += event.text
        answer.logprobs += event.logprobs
        answer.finish, answer.stats = event.finish, event.stats

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
            assert got.stats.cached_tokens % PAGE == 0
            assert got.stats.cached_tokens < got.stats.prompt_tokens
            assert got.stats.accepted <= got.stats.drafted
            for message in self.asked:
                if message.request_id == key[0] and message.params.min_tokens == 0:
                    assert not any(stop in got.text for stop in message.params.stop), key


def _fail() -> Any:
    raise ModelError("model.layers: its weights could not be read")


def check_pages(made: Engine) -> None:
    """Every page is free, idle or owned; whatever is not full has one owner."""
    running = made._scheduler.running
    _check_cache(made._cache, [sequence.pages for sequence in running])
    tables: dict[Running, PageTable] = getattr(made._drafter, "_tables", {})
    if tables:
        model: Any = made._drafter
        _check_cache(model.model.cache, list(tables.values()))
        assert tables.keys() <= set(running)
    for kept in ("_scratch", "_memories"):
        assert getattr(made._drafter, kept, {}).keys() <= set(running)
    assert all(sequence.table is None for sequence in made._scheduler.paused)
    assert len(running) <= made._scheduler.max_sequences


def _check_cache(cache: KVCache, tables: Sequence[PageTable]) -> None:
    owners = Counter(page for table in tables for page in table.pages)
    assert [owners[page] for page in range(cache.num_pages)] == cache._references
    everywhere = sorted([*owners, *cache._free, *cache._idle])
    assert everywhere == list(range(cache.num_pages))
    for table in tables:
        assert all(owners[page] == 1 for page in table.pages[table.length // PAGE :])
    assert set(cache._serials) == set(cache._keys_of) == set(cache._index.values())


def check_idle(made: Engine) -> None:
    """After the last answer nothing is held."""
    caches = [made._cache]
    drafter: Any = made._drafter
    if hasattr(drafter, "model"):
        caches.append(drafter.model.cache)
    for cache in caches:
        assert cache.num_free_pages == cache.num_pages
        assert not any(cache._references)
    for kept in ("_tables", "_scratch", "_memories"):
        assert not getattr(drafter, kept, None), kept
    assert not made._requests and made._scheduler.num_waiting == 0
    assert not list(made._scheduler.all())
