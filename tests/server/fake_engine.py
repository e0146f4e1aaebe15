"""A fake of the engine as the server sees it, which answers from a script, without a model.

Its tokenizer has one token for each byte (the id is the byte), three special tokens, and a chat
template.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import cast

from tokenizers import AddedToken, Tokenizer as RawTokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.errors import EngineDied, EngineError, QueueFull
from engine.messages import (
    Generate,
    ModelInfo,
    Origin,
    Stats,
    Tail,
    TokenLogprob,
    Tokens,
)
from engine.moves import LimitMemory
from engine.pass_trace import DraftedNodes, PassTrace
from engine.process.admission import check_request
from engine.process.callbacks import EngineCallbacks
from engine.process.client import EngineClient
from engine.process.engine_process import State
from engine.process.token_stream import EventQueue, TokenStream
from engine.spec import ModelSpec
from engine.text.detokenize import Detokenizer, TokenBytes
from engine.text.stop import StopRules
from server.text.tokenizer import Tokenizer

EOS = 256  # <eos>
START = 257  # <turn>
CALLS = 258  # [TOOL_CALLS]
VOCAB = 259
CONTEXT = 1024
SPECIAL = ("<eos>", "<turn>", "[TOOL_CALLS]")

TEMPLATE = (
    "{%- for m in messages -%}"
    "{%- if m.name == 'nobody' %}{{ raise_exception('no names here') }}{% endif -%}"
    "<turn>{{ m.role }}:{{ m.content }}{{ shout | default('') }}<eos>"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}<turn>assistant:{% endif -%}"
)


@cache
def transformers_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    spelled = _byte_alphabet()
    assert set(spelled.values()) == set(alphabet)
    raw = RawTokenizer(models.BPE(vocab={spelled[b]: b for b in range(256)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    inner = _library_tokenizer(raw)
    inner.eos_token = "<eos>"
    inner.chat_template = TEMPLATE
    return inner


def _library_tokenizer(raw: RawTokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=raw)  # type: ignore[no-untyped-call]  # no types


def _byte_alphabet() -> dict[int, str]:
    """Return the printable character that GPT-2's tokenizer writes for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def spelling() -> TokenBytes:
    return TokenBytes(transformers_tokenizer().backend_tokenizer)


@cache
def load_fake_tokenizer(path: str, chat_template: str | None) -> Tokenizer:
    """Return a tokenizer as `load_tokenizer` does; the path "no-template" has no chat template."""
    inner = transformers_tokenizer()
    if path == "no-template":
        inner = _library_tokenizer(inner.backend_tokenizer)
    tokenizer = Tokenizer(inner, spelling(), chat_template)
    return replace(tokenizer, support=tokenizer.probed())


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


@dataclass
class Script:
    """The behaviour of the engines of a test."""

    answers: Callable[[int], Sequence[int]] = lambda choice: (*ids_of("Hello there."), EOS)
    burst: int = 3  # tokens per pass
    beat: float = 0.0  # seconds between two passes
    context_length: int = CONTEXT
    tokenizer_path: str = "fake"
    fingerprint: str = "fp_fake"
    files: str = "files"
    revision: str = ""
    form: str = ""
    arithmetic: str = ""
    draft_methods: tuple[str, ...] = ("subspec", "ngram")
    num_states: int = 0  # of recurrent layers
    sampling: tuple[tuple[str, float], ...] = ()  # the model's own defaults
    queue: asyncio.Event | None = None  # requests wait for it before they run
    gate: asyncio.Event | None = None  # answers wait for it before their first token
    num_prefilled: int = 2  # tokens of a prompt that are done when its request begins
    pause: asyncio.Event | None = None  # answers wait for it before their last token
    restart: asyncio.Event | None = (
        None  # answers are lost before their last token, until it is set
    )
    load_gate: asyncio.Event | None = None  # loads wait for it
    load_error: Exception | None = None
    refuse: EngineError | None = None  # raised by `generate` at once
    error: Exception | None = None  # raised after `error_after` bursts
    error_after: int = 0
    max_queue: int | None = None


@dataclass
class FakeEngines:
    """A factory of fake engines, used in place of `EngineClient`, which keeps all it made."""

    script: Script = field(default_factory=Script)
    made: list["FakeEngine"] = field(default_factory=list)

    def __call__(
        self,
        spec: ModelSpec,
        *,
        max_queue: int,
        callbacks: EngineCallbacks,
    ) -> EngineClient:
        engine = FakeEngine(spec, self.script, self.script.max_queue or max_queue, callbacks)
        self.made.append(engine)
        return cast(EngineClient, engine)

    @property
    def engine(self) -> "FakeEngine":
        return self.made[-1]

    @property
    def loads(self) -> list[str]:
        return [engine.spec.id for engine in self.made]


class FakeEngine:
    """A fake of `EngineClient` for one loaded model, whose callbacks a test calls itself."""

    def __init__(
        self, spec: ModelSpec, script: Script, max_queue: int, callbacks: EngineCallbacks
    ) -> None:
        self.on_progress = callbacks.progress
        self.on_pass = callbacks.on_pass
        self.on_audit = callbacks.on_audit
        self.on_check = callbacks.on_check
        self.on_replan = callbacks.on_replan
        self.limits: LimitMemory | None = None
        self.on_kv_disk = callbacks.on_kv_disk
        self.on_restart = callbacks.on_restart
        self.on_resume = callbacks.on_resume
        self.spec = spec
        self.script = script
        self.max_queue = max_queue
        self.state: State = "new"
        self.info: ModelInfo | None = None
        self.requests: list[Generate] = []
        self.running: set[str] = set()
        self.waiting: list[str] = []  # the requests in `running` that have not begun
        self.event_queues: dict[str, EventQueue] = {}
        self.closed_requests: list[str] = []  # requests closed before their last token
        self.request_started = asyncio.Event()
        self.request_closed = asyncio.Event()
        self.load_started = asyncio.Event()
        self.restarted = asyncio.Event()
        self.refusal = ""
        self.num_paused = 0  # requests that have reached `pause`
        self.num_lost = 0  # requests that have been lost

    @property
    def num_outstanding(self) -> int:
        return len(self.running)

    @property
    def num_prompt_tokens_left(self) -> int:
        return 0

    async def start(self) -> ModelInfo:
        self.state = "loading"
        self.load_started.set()
        if self.script.load_gate is not None:
            await self.script.load_gate.wait()
        if self.script.load_error is not None:
            self.state = "failed"
            raise self.script.load_error
        self.state = "ready"
        self.info = ModelInfo(
            model_id=self.spec.id,
            vocab_size=VOCAB,
            context_length=self.script.context_length,
            capacity_tokens=self.script.context_length,
            max_sequences=4,
            eos_token_ids=(EOS,),
            numerics="strict",
            fingerprint=self.script.fingerprint,
            files=self.script.files,
            revision=self.script.revision,
            form=self.script.form,
            arithmetic=self.script.arithmetic,
            tokenizer_path=self.script.tokenizer_path,
            plan="no model at all",
            tiers=(("ram", 5), ("resident", 3)),
            tier_bytes=(("ram", 500), ("resident", 300)),
            num_pages=100,
            num_states=self.script.num_states,
            link_gbps=12.5,
            link_bits=7.5,
            draft_methods=self.script.draft_methods,
            sampling=self.script.sampling,
        )
        return self.info

    async def ready(self, timeout: float) -> ModelInfo:
        async with asyncio.timeout(timeout):
            await self.restarted.wait()
        if self.refusal:
            raise EngineDied(self.refusal, "engine_closed")
        assert self.info is not None
        return self.info

    def limit_memory(self, limits: LimitMemory) -> None:
        self.limits = limits

    def drain(self, reason: str) -> None:
        self.refusal = reason
        for request_id in self.waiting:
            self.event_queues[request_id].put_nowait(EngineDied(reason, "engine_closed"))
        self.restarted.set()

    async def close(self) -> None:
        self.state = "closed"
        for request_id, events in self.event_queues.items():
            if request_id in self.running:
                events.put_nowait(EngineDied(self.refusal or "unloaded", "engine_closed"))

    def run(
        self,
        message: Generate,
        *,
        on_prompt: Callable[[int], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> AsyncGenerator[Tokens, None]:
        if self.state != "ready" or self.info is None or self.refusal:
            raise EngineDied(self.refusal or f"not ready ({self.state})", "engine_closed")
        if self.script.refuse is not None:
            raise self.script.refuse
        check_request(message, self.info)
        request_id = message.request_id
        if len(self.running) >= self.max_queue:
            raise QueueFull("too many")
        assert request_id not in self.running
        self.requests.append(message)
        self.running.add(request_id)
        events: EventQueue = asyncio.Queue()
        self.event_queues[request_id] = events
        serving = asyncio.create_task(self._serve(message, events, on_prompt, on_lost, on_tokens))
        self.waiting.append(request_id)

        def abort() -> None:
            if request_id in self.running:
                self.running.discard(request_id)
                if request_id in self.waiting:
                    self.waiting.remove(request_id)
                serving.cancel()
                self.closed_requests.append(request_id)
                self.request_closed.set()

        return TokenStream(events, abort)

    def position(self, request_id: str) -> int:
        return self.waiting.index(request_id) + 1 if request_id in self.waiting else 0

    async def _serve(
        self,
        message: Generate,
        events: EventQueue,
        on_prompt: Callable[[int], None] | None,
        on_lost: Callable[[], None] | None,
        on_tokens: Callable[[int], None] | None,
    ) -> None:
        self.request_started.set()
        if self.script.queue is not None:
            await self.script.queue.wait()
        self.waiting.remove(message.request_id)
        if on_prompt is not None:
            on_prompt(self.script.num_prefilled)
        if self.script.gate is not None:
            await self.script.gate.wait()
        if on_prompt is not None:
            on_prompt(len(message.prompt))
        choices = [own.choice for own in message.emitted] or range(message.n)
        passes = [self._passes(message, choice) for choice in choices]
        longest = max(len(p) for p in passes)
        for i in range(longest):
            if self.script.error is not None and i == self.script.error_after:
                self.running.discard(message.request_id)
                events.put_nowait(cast(EngineError, self.script.error))
                return
            if self.script.pause is not None and i == longest - 1:
                self.num_paused += 1
                await self.script.pause.wait()
            if self.script.restart is not None and i == longest - 1:
                assert on_lost is not None and on_prompt is not None
                on_lost()
                self.num_lost += 1
                await self.script.restart.wait()
                on_prompt(len(message.prompt))
            await asyncio.sleep(self.script.beat)
            for choice in passes:
                if i < len(choice):
                    if on_tokens is not None and not choice[i].is_replayed:
                        on_tokens(len(choice[i].ids))
                    events.put_nowait(choice[i])
        self.running.discard(message.request_id)
        events.put_nowait(None)

    def _passes(self, message: Generate, choice: int) -> list[Tokens]:
        """Return the messages of one choice: bursts of tokens up to its end."""
        params = message.params
        room = self.script.context_length - len(message.prompt)
        rules = StopRules(
            params,
            eos_token_ids=(EOS,),
            max_tokens=room if params.max_tokens is None else params.max_tokens,
            detokenizer=Detokenizer(spelling().showing(params.shown_tokens)),
            answer_format=message.answer_format,
        )
        script = list(self.script.answers(choice)) if params.max_tokens != 0 else []
        tail = next((own for own in message.emitted if own.choice == choice), Tail(choice, ()))
        given, passes = tail.ids, list[Tokens]()
        if tail.is_read:  # another engine has sent them
            script, given = _after(tail, script, rules), ()
        if params.max_tokens == 0:
            stats = _stats(message, 0, 1)
            passes.append(Tokens(message.request_id, choice, (), "", finish="length", stats=stats))
        while not passes or passes[-1].finish is None:
            is_replayed = bool(given) and not passes
            length = len(given) if is_replayed else self.script.burst
            burst, script = script[:length], script[length:]
            assert not is_replayed or tuple(burst) == given, "not what the script says"
            text, ids, finish, reason, lookahead = "", [], None, None, ""
            for token in burst or [ord(".")]:
                verdict = rules.push(token)
                ids.append(token)
                text += verdict.text
                finish, reason = verdict.finish, verdict.stop_reason
                lookahead = verdict.lookahead
                if finish is not None:
                    break
            passes.append(
                Tokens(
                    message.request_id,
                    choice,
                    tuple(ids),
                    text,
                    tuple(_logprob(t, choice, params.logprobs) for t in ids)
                    if params.logprobs is not None
                    else (),
                    origins=_origins(len(ids), len(passes) + 1),
                    finish=finish,
                    stop_reason=reason,
                    lookahead=lookahead,
                    stats=None
                    if finish is None
                    else _stats(message, rules.num_tokens, len(passes) + 1),
                    is_replayed=is_replayed,
                    traces=(_trace(ids, len(passes) + 1),)
                    if message.traced_nodes and not is_replayed
                    else (),
                )
            )
        if params.prompt_logprobs is not None and choice == 0 and not given:
            scores = [_logprob(t, 0, params.prompt_logprobs) for t in message.prompt[1:]]
            passes[0] = replace(passes[0], prompt_logprobs=(None, *scores))
        return passes


def _after(tail: Tail, script: list[int], rules: StopRules) -> list[int]:
    """Return the rest of a script, of which another engine has sent the first tokens."""
    assert tuple(script[: len(tail.ids)]) == tail.ids, "not what the script says"
    for token in tail.ids:
        rules.push(token)
    return script[len(tail.ids) :]


def _origins(count: int, pass_number: int) -> tuple[Origin, ...]:
    """Return the origins of a pass in which all but the last token were drafted."""
    drafted = [Origin("subspec", depth, pass_number) for depth in range(1, count)]
    return (*drafted, Origin("target", 0, pass_number))


def _trace(ids: Sequence[int], number: int) -> PassTrace:
    """Return the trace of such a pass, whose tree has one rejected node more."""
    tokens = (*ids[:-1], ord("?"))
    last = len(tokens) - 1
    nodes = DraftedNodes(
        parents=tuple(range(-1, last)),
        tokens=tokens,
        sources=("subspec",) * len(tokens),
        scores=tuple(-0.5 * depth for depth in range(1, len(tokens) + 1)),
        accepted=(*(True,) * last, False),
    )
    return PassTrace(
        number=number,
        tokens=len(ids),
        own_rows=len(tokens) + 1,
        rows=9,
        sequences=2,
        pass_ms=20.0,
        draft_ms=1.25,
        copy_stall_ms=12.5,
        link_bytes=1000,
        nodes=nodes,
    )


def _logprob(token: int, choice: int, num_top: int) -> TokenLogprob:
    """Return a log-probability that is higher for later choices, and below its alternatives."""
    top = tuple(((token + 1 + i) % VOCAB, -0.25 - i / 4) for i in range(num_top))
    return TokenLogprob(token, -1.0 / (1 + choice), top)


def _stats(message: Generate, num_tokens: int, passes: int) -> Stats:
    return Stats(
        prompt_tokens=len(message.prompt),
        cached_tokens=2,
        completion_tokens=num_tokens,
        passes=passes,
        drafted=4 * passes,
        accepted=num_tokens - passes,
        prompt_ms=5.0,
        predicted_ms=10.0,
        prediction_accepted=len(message.prediction),
        prediction_rejected=2 * len(message.prediction),
    )
