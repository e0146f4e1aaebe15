"""Sequences without a model, for tests of code that reads only their tokens."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engine.messages import AUTO, Generate, SamplingParams, Speculation
from engine.sequences.sequence import Limits, Request, TokenSequence
from engine.text.detokenize import Detokenizer, TokenBytes
from engine.text.stop import StopRules

EOS = 1
LIMITS = Limits(max_tokens=100_000, eos_token_ids=frozenset({EOS}), original_length=None)


def make_request(
    prompt: Sequence[int],
    *,
    name: str = "r",
    key: str = "",
    n: int = 1,
    limits: Limits = LIMITS,
    speculation: Speculation = AUTO,
    prediction: Sequence[int] = (),
    **params: Any,
) -> Request:
    own = SamplingParams(**params)
    message = Generate(
        request_id=name,
        prompt=tuple(prompt),
        params=own,
        n=n,
        key=key,
        speculation=speculation,
        prediction=tuple(prediction),
    )
    return Request(message, limits)


def make_sequence(prompt: Sequence[int], **arguments: Any) -> TokenSequence:
    """Return the first choice of a new request. Keyword arguments are those of `make_request`."""
    return choice_of(make_request(prompt, **arguments))


def choice_of(request: Request, choice: int = 0) -> TokenSequence:
    rules = StopRules(
        request.message.params,
        eos_token_ids=request.limits.eos_token_ids,
        max_tokens=request.limits.max_tokens,
        detokenizer=Detokenizer(_bytes()),
    )
    return TokenSequence(request, choice, rules)


@cache
def _bytes() -> TokenBytes:
    """Return a vocabulary with one token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: number for number, char in enumerate(alphabet)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return TokenBytes(tokenizer)
