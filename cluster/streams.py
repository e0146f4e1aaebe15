"""Streams that run here or at a peer, and go on elsewhere when what runs them is lost."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from cluster.held_pages import PageBooks
from cluster.page_hashes import page_hashes
from cluster.peer import PeerLost, PeerNonsense
from cluster.peers import Peer, Peers
from cluster.placement import Placed, Prompt
from cluster.report import Load
from cluster.served_model import ServedModel
from cluster.wire import Ask, Emitted, Failure, Progress
from engine.errors import EngineDied, EngineError, PassFailed, QueueFull, StreamCut
from engine.messages import Generate, ModelInfo, Tokens
from engine.process.admission import check_request
from engine.process.interface import Engine
from engine.process.token_stream import EventQueue, RunningRequest, TokenStream

CLOSED = "engine_closed"
HERE = "here"  # the name of this server in the placement, and of its clients in the books
SHORT_ANSWER = 256  # tokens that a replica must have room for
MOST_STUCK = 3  # losses of a request without a new token between them
RETRY_SECONDS = 1.0
MOST_KNOWN = 4096  # requests whose fingerprints are known


class _Lost(Exception):
    """What runs a stream has lost it; `error` says why."""

    def __init__(self, error: EngineError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(eq=False)
class _Stream:
    """A request, and what it needs wherever it runs.

    Args:
        limit: the most tokens of each choice.
        wanted: the fingerprints of the engine that must begin it; None: any engine may.
        names: those of the engine that has run it last.
    """

    request: RunningRequest
    limit: int
    wanted: frozenset[str] | None
    first_choice: int
    on_lost: Callable[[], None] | None
    names: frozenset[str] = frozenset()

    @property
    def message(self) -> Generate:
        return self.request.message

    @property
    def is_begun(self) -> bool:
        """Whether an engine has sent tokens of it, so that only an equal one can go on."""
        return bool(self.request.engine) and self.request.has_emitted

    @property
    def names_wanted(self) -> frozenset[str] | None:
        """The fingerprints of the engine that must run it, or go on with it; None: any."""
        return self.names if self.is_begun else self.wanted

    def run_next_on(self, names: frozenset[str], fingerprint: str) -> Generate:
        """Return the message for the engine that runs it next.

        Args:
            names: all fingerprints of that engine.
            fingerprint: the one that the client is shown.
        """
        self.names = names
        return self.request.next_message(fingerprint)


class PeerStreams:
    """The streams of one model, each of which runs where its first token comes earliest.

    Args:
        engine: runs the model here.
        load: returns the work that this server has.
        served: returns the model that this server runs, as peers are told of it.
        patience: seconds that a stream waits for a peer with its fingerprint.
    """

    def __init__(
        self,
        engine: Engine,
        peers: Peers,
        load: Callable[[], Load],
        served: Callable[[], ServedModel],
        books: PageBooks,
        patience: float,
    ) -> None:
        self._engine, self._peers = engine, peers
        self._load, self._served = load, served
        self._books, self._patience = books, patience
        # Fingerprints of the latest requests; a consumer may be later than the end of its stream.
        self._ran_on: OrderedDict[str, str] = OrderedDict()
        self._reported = ("", 0)  # instance and number of the last change of pages here
        if peers.runs_here:
            peers.placement.add(HERE)

    @property
    def fingerprints(self) -> frozenset[str]:
        """The fingerprints of all engines that run the model."""
        own = self._served()
        found = [
            peer.names_beside(own)
            for peer in self._peers.all.values()
            if not peer.reason_against(own, None, None)
        ]
        return own.names.union(*found)

    def fingerprint(self, request_id: str) -> str | None:
        """Return the fingerprint of the engine that runs a request; None before it is placed."""
        return self._ran_on.get(request_id)

    def run(
        self,
        message: Generate,
        *,
        fingerprint: str | None = None,
        first_choice: int = 0,
        on_prompt: Callable[[int], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> AsyncGenerator[Tokens, None]:
        """Return the stream of a request, as `EngineClient.run` does.

        It raises `StreamCut` if it cannot go on anywhere.

        Args:
            fingerprint: the one that the stream must have; None: that of any engine.
            first_choice: the number that the first choice has in the client's answer.
        """
        info = self._info()
        check_request(message, info)
        events: EventQueue = asyncio.Queue()
        most = min(info.context_length, info.capacity_tokens) - len(message.prompt)
        request = RunningRequest(message, events, on_prompt, on_lost, on_tokens, most)
        limit = most if message.params.max_tokens is None else message.params.max_tokens
        wanted = None if fingerprint is None else self._names_of(fingerprint)
        own = _Stream(request, limit, wanted, first_choice, on_lost)
        task = asyncio.create_task(self._run(own), name=f"stream {message.request_id}")

        def abort() -> None:
            task.cancel()

        return TokenStream(events, abort)

    def _names_of(self, fingerprint: str) -> frozenset[str]:
        """Return all fingerprints of the engines that have this one."""
        own = self._served()
        known = [own.names, *(peer.names_beside(own) for peer in self._peers.all.values())]
        return frozenset({fingerprint}).union(*(own for own in known if fingerprint in own))

    def _num_pages(self) -> int:
        return self._info().num_pages

    def _info(self) -> ModelInfo:
        info = self._engine.info
        assert info is not None, "the model is loaded"
        return info

    async def _run(self, own: _Stream) -> None:
        """Run a request to its end, wherever that is, and put its end into its queue."""
        end: EngineError | None = EngineDied("The request was ended by an error. Try again.")
        try:
            await self._run_somewhere(own)
            end = None
        except EngineError as error:
            end = error
        finally:  # without an end in the queue the client would wait for ever
            own.request.events.put_nowait(end)

    async def _run_somewhere(self, own: _Stream) -> None:
        request, stuck, lost_at = own.request, 0, None
        error: EngineError = EngineDied("No server can run this request now. Try again.")
        tried: set[str] = set()
        while True:
            if self._engine.state == "closed":
                raise EngineDied("The model was unloaded while the request was running.", CLOSED)
            placed = self._place(own, tried)
            if placed is None:
                lost_at = lost_at or time.monotonic()
                is_late = time.monotonic() - lost_at > self._patience
                # Where no replica is left a new request waits for one, but not where all are full.
                is_final = is_late or self._peers.runs_here or isinstance(error, QueueFull)
                if is_final and not own.is_begun:
                    raise error
                if is_late:
                    raise self._cut(own, error)
                tried.clear()
                await self._peers.wait_for_report(RETRY_SECONDS)
                continue
            is_stored = False
            try:
                await self._run_at(own, placed)
                is_stored = True
                return
            except _Lost as lost:
                error = lost.error
            finally:
                is_stored = is_stored or request.num_new > 0
                self._peers.placement.end(placed, is_stored=is_stored)
            tried.add(placed.replica)
            if request.num_new:
                stuck, lost_at = 0, None
            else:
                stuck += request.has_run  # a refusal is no loss
            if stuck > MOST_STUCK and own.is_begun:
                raise self._cut(own, error)
            self._lose(own)

    def _lose(self, own: _Stream) -> None:
        """Note that a request has to go on elsewhere."""
        if own.request.has_run:
            self._peers.count_moved()
            own.request.lose()
        else:
            own.request.withdraw()

    def _cut(self, own: _Stream, error: EngineError) -> StreamCut:
        """Return the error of a stream that cannot go on, with the ids that it has sent."""
        return StreamCut(
            f"This answer cannot go on, because no server with the fingerprint "
            f"{own.request.engine} is left ({error}). Go on with it by 'continue_tokens'.",
            own.request.engine,
            {own.first_choice + k: tuple(ids) for k, ids in own.request.emitted.items()},
            own.message.params.seed,
        )

    def _place(self, own: _Stream, tried: set[str]) -> Placed | None:
        """Choose where a request runs next."""
        served, message, now = self._served(), own.message, time.monotonic()
        names = own.names_wanted
        if self._peers.runs_here:
            self._report_here(now)
        text = [*message.prompt, *max(own.request.emitted.values(), key=len, default=())]
        tokens = max(SHORT_ANSWER, message.params.min_tokens) if own.limit else 0
        least = len(message.prompt) + min(tokens, own.limit)
        prompt = Prompt(len(text), page_hashes(text), least)
        method = message.speculation.method

        def is_allowed(name: str) -> bool:
            if name in tried:
                return False
            if name == HERE:
                is_equal = names is None or served.computes_as(names)
                return self._engine.state == "ready" and is_equal
            return not self._peers.all[name].reason_against(served, names, method)

        return self._peers.placement.place(prompt, now, is_allowed)

    def _report_here(self, now: float) -> None:
        """Note the load and the pages of this server."""
        held, (instance, number) = self._books.of(HERE, self._num_pages()), self._reported
        change = held.change_since(number if instance == self._books.instance else -1)
        self._reported = (self._books.instance, held.number)
        self._peers.placement.report(HERE, self._load(), change, now)

    async def _run_at(self, own: _Stream, placed: Placed) -> None:
        """Run a request where it was placed, to its end. Raise `_Lost` if it is lost there."""
        if placed.replica == HERE:
            await self._run_here(own)
        else:
            await self._run_there(own, self._peers.all[placed.replica])

    def _next_message(self, own: _Stream, names: frozenset[str], fingerprint: str) -> Generate:
        """Return the message for the engine that runs a request next."""
        self._ran_on[own.message.request_id] = fingerprint
        while len(self._ran_on) > MOST_KNOWN:
            self._ran_on.popitem(last=False)
        return own.run_next_on(names, fingerprint)

    async def _run_here(self, own: _Stream) -> None:
        request, served = own.request, self._served()
        message = self._next_message(own, served.names, served.fingerprint)
        try:
            stream = self._engine.run(message, on_prompt=request.note_prompt, on_lost=own.on_lost)
            async with aclosing(stream):
                async for tokens in stream:
                    if tokens.finish is not None:
                        text = [*own.message.prompt, *request.emitted[tokens.choice], *tokens.ids]
                        self._books.of(HERE, self._num_pages()).add(page_hashes(text))
                    request.deliver(tokens)
        except QueueFull as error:
            raise _Lost(error) from error
        except EngineDied as error:
            if error.code == CLOSED:
                raise
            raise _Lost(error) from error

    async def _run_there(self, own: _Stream, peer: Peer) -> None:
        """Run a request at a peer."""
        model = None if peer.report is None else peer.report.model
        load = None if peer.report is None else peer.report.load
        if model is None or load is None:
            raise _Lost(EngineDied(f"The peer {peer.name} is not there."))
        request, served = own.request, self._served()
        names, fingerprint = peer.names_beside(served), peer.fingerprint_beside(served)
        message = self._next_message(own, names, fingerprint)
        room = load.longest - len(message.prompt)
        params = replace(message.params, max_tokens=min(own.limit, room))
        ask = Ask(model.files, model.fingerprint, replace(message, params=params))
        peer.count_sent()
        try:
            async with aclosing(peer.client.generate(ask)) as frames:
                async for frame in frames:
                    match frame:
                        case Progress(prompt):
                            request.note_prompt(min(prompt, len(message.prompt)))
                        case Emitted(tokens):
                            self._deliver(own, tokens)
                            if not request.num_unfinished:
                                return
                        case Failure():
                            raise frame.exception()
            if request.num_unfinished:
                raise PeerNonsense("it ended a stream whose choices had not finished")
        except PeerLost as error:
            self._peers.note_lost(peer, error)
            raise _Lost(EngineDied(f"The peer {peer.name} is lost: {error}")) from error
        except (EngineDied, QueueFull, PassFailed) as error:
            peer.count_lost()
            raise _Lost(error) from error

    def _deliver(self, own: _Stream, tokens: Tokens) -> None:
        """Pass the tokens of a peer on, after a check.

        Raise `PeerNonsense`, and `_Lost` if the peer has no room for more although the answer may
        be longer: these tokens are left out, and come again from where it goes on.
        """
        request = own.request
        _check_tokens(tokens, request, self._info())
        count = len(request.emitted[tokens.choice]) + len(tokens.ids) * (not tokens.is_replayed)
        if tokens.finish == "length" and count < own.limit:
            raise _Lost(EngineDied("The peer has no room for the rest of this answer."))
        request.deliver(tokens)


def _check_tokens(tokens: Tokens, request: RunningRequest, info: ModelInfo) -> None:
    """Raise `PeerNonsense` for tokens that no engine sends for this request."""
    params, count = request.message.params, len(tokens.ids)
    ids = [*tokens.ids, *(own.token for own in tokens.logprobs)]
    ids += [top for own in tokens.logprobs for top, _ in own.top]
    scored = count if params.logprobs is not None else 0
    prompt = len(request.message.prompt) if params.prompt_logprobs is not None else 0
    is_right = (
        tokens.choice in request.emitted
        and all(0 <= own < info.vocab_size for own in ids)
        and len(tokens.logprobs) in ({scored} if not tokens.is_replayed else {scored, 0})
        and len(tokens.prompt_logprobs) in (0, prompt)
        and len(tokens.origins) in (count, 0)
        and tokens.finish in (None, "stop", "length")
        and (tokens.finish is None or tokens.stats is not None)
        and (not tokens.is_replayed or request.is_unread(tokens.choice))
    )
    if not is_right:
        raise PeerNonsense("it sent tokens that do not belong to the request")
