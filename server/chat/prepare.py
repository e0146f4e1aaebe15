"""What a request comes to on one model, before the engine is asked: work of the text process.

Rendering, tokenizing and compiling grammars take a while, and what a template or a library does to
the process must harm this request only.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass

from engine.messages import ModelInfo
from server.chat.answer_grammar import answer_grammar, behind_thought
from server.chat.echo import Echo
from server.chat.grammars import completion_grammar
from server.chat.prompt import (
    begun_answer,
    chat_ids,
    chat_text,
    predicted_tokens,
    text_prompts,
)
from server.chat.tools import tool_use
from server.errors import ApiError
from server.parsing.calls import Tools
from server.parsing.selection import formats_of
from server.schemas.chat import ChatRequest
from server.schemas.checking import parse_body
from server.schemas.completions import CompletionRequest
from server.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prepared:
    """A prompt, what of the answer is predicted and what it must match, and how it is read.

    Args:
        grammar: as llguidance writes it; "": anything.
        shown_tokens: special tokens that the parser looks for in the text.
        tools: the tools that the answer may call.
        before: the text that the answer continues.
    """

    prompt: "array[int]"
    prediction: "array[int]"
    grammar: str
    shown_tokens: tuple[int, ...]
    tools: Tools
    before: str


def prepare(
    tokenizer: Tokenizer,
    raw: bytes,
    read: Callable[[bytes], ChatRequest],
    info: ModelInfo,
    tools: str | None,
    reasoning: str | None,
) -> Prepared:
    """Prepare the chat that `read` makes of a body.

    `tools` and `reasoning` name the formats of the answer, where the model's file does.

    Raises `ApiError` 400 for messages that cannot be rendered and for schemas that cannot be
    followed.
    """
    request = read(raw)
    formats = formats_of(tokenizer.template, tools, reasoning)
    use = tool_use(request)
    text = chat_text(tokenizer, request)
    before = begun_answer(request) or text
    tokens = tokenizer.added_tokens
    grammar = answer_grammar(request, use, formats.forced, tokens)
    if grammar:
        formats = formats.forced
        grammar = behind_thought(grammar, formats, before, tokenizer.template, tokens)
    marks = formats.special_tokens(tools=bool(use.tools))
    predicted = predicted_tokens(tokenizer, info, request.prediction) if request.prediction else ()
    return Prepared(
        array("I", chat_ids(tokenizer, info, text)),
        array("I", predicted),
        grammar,
        tokenizer.special_tokens(marks),
        use.schemas,
        before,
    )


@dataclass(frozen=True)
class PreparedTexts:
    """The prompts of a request, what is shown of each, and what the answers must match."""

    prompts: "list[array[int]]"
    echoes: list[Echo]
    grammar: str


def prepare_texts(
    tokenizer: Tokenizer, raw: bytes, info: ModelInfo, most_prompts: int
) -> PreparedTexts:
    """Prepare a completion request, in the text process. Raises `ApiError` 400."""
    body = parse_body(CompletionRequest, raw)
    given = body.prompts
    if len(given) > most_prompts:
        message = f"'prompt' has {len(given)} prompts; this server takes at most {most_prompts}."
        raise ApiError(message, code="invalid_value", param="prompt")
    prompts = text_prompts(tokenizer, info, given)
    longest, context = max(len(prompt) for prompt in prompts), info.context_length
    if longest > context:  # said by the engine's client too, but not for `max_tokens: 0`
        message = (
            f"This model's maximum context length is {context} tokens. However, the prompt has "
            f"{longest} tokens. Shorten the prompt."
        )
        raise ApiError(message, code="context_length_exceeded", param="prompt")
    ids = [array("I", prompt) for prompt in prompts]
    echoes = [Echo()] * len(prompts)
    if body.echo:
        echoes = [
            Echo(text if isinstance(text, str) else tokenizer.decode(own), own)
            for text, own in zip(given, ids, strict=True)
        ]
    return PreparedTexts(ids, echoes, completion_grammar(body))
