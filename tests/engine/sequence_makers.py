"""Sequences without a model, for the parts of a step that only look at tokens."""

from collections.abc import Sequence as Seq
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engine.messages import AUTO, Generate, SamplingParams, Speculation
from engine.sequences.sequence import Limits, Request, Sequence
from engine.text.detokenize import Detokenizer, TokenBytes
from engine.text.stop import StopRules

EOS = 1
LIMITS = Limits(max_tokens=100_000, eos_token_ids=frozenset({EOS}), original_length=None)


def make_request(
    prompt: Seq[int],
    *,
    name: str = "r",
    key: str = "",
    n: int = 1,
    limits: Limits = LIMITS,
    speculation: Speculation = AUTO,
    prediction: Seq[int] = (),
    **params: Any,
) -> Request:
    own = SamplingParams(**params)
    message = Generate(name, tuple(prompt), own, n, key, speculation, tuple(prediction))
    return Request(message, limits)


def make_sequence(prompt: Seq[int], **arguments: Any) -> Sequence:
    """The first choice of a new request; keyword arguments as for `make_request`."""
    return choice_of(make_request(prompt, **arguments))


def choice_of(request: Request, choice: int = 0) -> Sequence:
    rules = StopRules(
        request.message.params,
        eos_token_ids=request.limits.eos_token_ids,
        max_tokens=request.limits.max_tokens,
        detokenizer=Detokenizer(_bytes()),
    )
    return Sequence(request, choice, rules)


@cache
def _bytes() -> TokenBytes:
    """One token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: number for number, char in enumerate(alphabet)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return TokenBytes(tokenizer)
