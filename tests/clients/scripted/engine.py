"""An engine process without a model, whose answers a script gives.

The folder of the model has `script.json`, which is read again at each request (`Script.write`), and
`format.json` with the name of the format. `main` is the entry point for `EngineClient`.
"""

import json
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from tokenizers import Tokenizer

from engine.errors import RequestError
from engine.kv.disk.saves import IdleSaves
from engine.messages import (
    Failed,
    Generate,
    LoadProgress,
    ModelInfo,
    Origin,
    PassStats,
    ReportProgress,
    Stats,
    TokenLogprob,
    Tokens,
)
from engine.process import worker
from engine.process.worker import OnPassProgress, OnPrompt
from engine.spec import ModelSpec
from engine.streaming.recheck import Rechecks
from engine.text.detokenize import Detokenizer, TokenBytes
from engine.text.stop import StopRules
from tests.clients.scripted.choose import answer
from tests.clients.scripted.formats import FORMATS
from tests.clients.scripted.script import Script
from tests.engine.fake_engine import FakeAudits, FakeResidence

CONTEXT_LENGTH = 262_144
POLL_S = 0.01


def main(connection: Connection, spec: ModelSpec) -> None:
    """Serve the scripted model in the folder of `spec`, or a real model if there is no script."""
    if (Path(spec.target.source) / "script.json").exists():
        worker.serve(connection, spec, ScriptedEngine.load)
    else:
        worker.main(connection, spec)


class Choice:
    """One choice of a request: the tokens that are still to be emitted, and its stop rules."""

    def __init__(self, message: Generate, index: int, ids: list[int], rules: StopRules) -> None:
        self.message = message
        self._index = index
        self._ids = ids
        self._rules = rules
        self._passes = 0

    def emit(self, count: int) -> Tokens:
        """Return the next tokens, at most `count`."""
        self._passes += 1
        ids: list[int] = []
        text, finish, reason = "", None, None
        while finish is None and len(ids) < count:
            ids.append(self._ids.pop(0))
            result = self._rules.push(ids[-1])
            text += result.text
            finish, reason = result.finish, result.stop_reason
        logprobs = self.message.params.logprobs
        return Tokens(
            self.message.request_id,
            self._index,
            tuple(ids),
            text,
            () if logprobs is None else tuple(_certain(token, logprobs) for token in ids),
            origins=(Origin("target", 0, self._passes),) * len(ids),
            finish=finish,
            stop_reason=reason,
            stats=None if finish is None else self._stats(),
        )

    def _stats(self) -> Stats:
        return Stats(
            prompt_tokens=len(self.message.prompt),
            cached_tokens=0,
            completion_tokens=self._rules.num_tokens,
            passes=self._passes,
            drafted=0,
            accepted=0,
            prompt_ms=1.0,
            predicted_ms=1.0,
        )


def _certain(token: int, num_top: int) -> TokenLogprob:
    return TokenLogprob(token, 0.0, ((token, 0.0),)[:num_top])


class ScriptedEngine:
    """An engine with the interface `engine.process.worker.StepEngine`."""

    def __init__(self, spec: ModelSpec, progress: OnPassProgress, on_prompt: OnPrompt) -> None:
        folder = Path(spec.target.source)
        self._script_path = folder / "script.json"
        self._format = FORMATS[json.loads((folder / "format.json").read_text())]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._bytes = TokenBytes(self._tokenizer)
        ends = map(self._bytes.special_token, self._format.ends)
        self._ends = tuple(end for end in ends if end is not None)
        self._progress = progress
        self._on_prompt = on_prompt
        self._running: dict[str, Iterator[list[Tokens]]] = {}
        self._aborted: set[str] = set()
        self._lock = threading.Lock()
        self.auditor = FakeAudits()  # nothing is ever offered to it
        self.rechecks = Rechecks(None, [], 0)
        self.residence = FakeResidence()
        self.saves = IdleSaves(None)
        self.last_pass: PassStats | None = None
        self.info = ModelInfo(
            model_id=spec.id,
            vocab_size=self._tokenizer.get_vocab_size(),
            context_length=CONTEXT_LENGTH,
            capacity_tokens=CONTEXT_LENGTH,
            max_sequences=8,
            eos_token_ids=self._ends,
            numerics="strict",
            fingerprint="fp_scripted",
            tokenizer_path=str(folder),
            plan="answers are read from script.json",
        )

    @classmethod
    def load(
        cls, spec: ModelSpec, progress: ReportProgress, on_pass: OnPassProgress, on_prompt: OnPrompt
    ) -> "ScriptedEngine":
        """Return an engine; see `engine.process.worker.Load`."""
        progress(LoadProgress("loading", 1, 1))
        return cls(spec, on_pass, on_prompt)

    def compile(self, request: Generate) -> None:
        """Raise `RequestError` for what no script can answer. Grammars are ignored."""
        if request.params.max_tokens == 0 or request.params.prompt_logprobs is not None:
            raise RequestError("A scripted model cannot score a prompt.", "unsupported", "prompt")

    def queue(self, request: Generate, constraint: object) -> None:
        """Begin a request."""
        self._running[request.request_id] = self._serve(request, Script.read(self._script_path))

    def abort(self, request_id: str) -> None:
        """Note that a client has left. Any thread may call this."""
        with self._lock:
            self._aborted.add(request_id)

    def has_work(self) -> bool:
        """Return whether requests are running."""
        return bool(self._running)

    def step(self) -> list[Tokens | Failed]:
        """Return the tokens of one pass of each request."""
        with self._lock:
            left, self._aborted = self._aborted, set()
        for request_id in left:
            self._running.pop(request_id, None)
        time.sleep(POLL_S)
        self._progress()
        results: list[Tokens | Failed] = []
        for request_id, passes in list(self._running.items()):
            emitted = next(passes, None)
            if emitted is None:
                del self._running[request_id]
            else:
                results += emitted
        return results

    def close(self) -> None:
        """Forget the running requests."""
        self._running.clear()

    def _serve(self, request: Generate, script: Script) -> Iterator[list[Tokens]]:
        """Yield the tokens of each pass of a request; nothing while it waits."""
        prompt = self._tokenizer.decode(list(request.prompt), skip_special_tokens=False)
        text = answer(script, self._format, prompt)
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        self._on_prompt(request.request_id, 0)
        yield from _waiting(script.first_after_s)
        choices = [self._choice(request, index, list(ids)) for index in range(request.n)]
        while choices:
            emitted = [(choice, choice.emit(script.tokens_per_pass)) for choice in choices]
            yield [tokens for _, tokens in emitted]
            choices = [choice for choice, tokens in emitted if tokens.finish is None]
            yield from _waiting(script.pass_s)

    def _choice(self, request: Generate, index: int, ids: list[int]) -> Choice:
        room = CONTEXT_LENGTH - len(request.prompt)
        params = request.params
        rules = StopRules(
            params,
            eos_token_ids=self._ends,
            max_tokens=room if params.max_tokens is None else min(room, params.max_tokens),
            detokenizer=Detokenizer(self._bytes.showing(params.shown_tokens)),
            answer_format=request.answer_format,
        )
        return Choice(request, index, ids, rules)


def _waiting(seconds: float) -> Iterator[list[Tokens]]:
    """Yield nothing again and again until the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield []
