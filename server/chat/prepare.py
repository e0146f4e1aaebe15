"""The preparation of a request for one model's engine, done in the text process.

It renders the chat, tokenizes the prompt, and writes the grammar of the answer. These steps take
time, and a failure in a template or a library must affect this request only.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass

from engine.messages import ModelInfo, ThinkingBudget
from engine.parsing.calls import Tools
from engine.parsing.selection import formats_of
from server.chat.answer_grammar import answer_grammar, behind_thought, dropped_of_answer
from server.chat.continuing import continued_ids
from server.chat.echo import Echo
from server.chat.fitting import fitting_ids
from server.chat.grammars import completion_grammar, dropped_keywords
from server.chat.prompt import (
    chat_prompt,
    predicted_tokens,
    text_prompts,
)
from server.chat.thinking import thinking_budget
from server.chat.tools import tool_use
from server.errors import ApiError
from server.schemas.chat import ChatRequest
from server.schemas.checking import parse_body
from server.schemas.completions import CompletionRequest
from server.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prepared:
    """A chat, prepared for the engine, with what is needed to parse the model's answer.

    Args:
        prompt: the token ids of the prompt.
        prediction: the token ids of the request's predicted answer; empty if it has none.
        grammar: the grammar that the answer must match, in llguidance's Lark form; "": any text.
        thinking: the budget of the answer's thinking part; None: no limit, or no thinking part.
        shown_tokens: the ids of special tokens that stay in the text, because the parser needs them
            to find reasoning and tool calls.
        tools: the schemas of the parameters of the tools that the answer may call, by name.
        custom_names: the names of the custom tools, whose calls have a text instead of arguments.
        is_call: whether the answer must be a tool call.
        has_old_calls: whether the answer has `function_call` instead of `tool_calls`.
        left_out: the parts of the request that are not followed or not shown to the model.
        before: the text that the answer continues.
        continued: the tokens that the client has of each choice, which the answer goes on after.
    """

    prompt: "array[int]"
    prediction: "array[int]"
    grammar: str
    thinking: ThinkingBudget | None
    shown_tokens: tuple[int, ...]
    tools: Tools
    custom_names: frozenset[str]
    is_call: bool
    has_old_calls: bool
    left_out: list[str]
    before: str
    continued: "dict[int, array[int]]"


def prepare(
    tokenizer: Tokenizer,
    raw: bytes,
    read: Callable[[bytes], ChatRequest],
    info: ModelInfo,
    tools: str | None,
    reasoning: str | None,
    default_budget: int | None,
) -> Prepared:
    """Prepare the chat that `read` makes of a request body.

    Raises `ApiError` 400 for an invalid body, for messages that cannot be rendered or do not fit
    the context, and for schemas that cannot be expressed as a grammar.

    Args:
        raw: the request body.
        read: a function that checks the body and returns it as a chat.
        tools: the format of tool calls that the model's file names; None: the template's.
        reasoning: the format of reasoning that the model's file names; None: the template's.
        default_budget: the most tokens of reasoning if the request does not say it; None: no limit.
    """
    request = read(raw)
    formats = formats_of(tokenizer.template, tools, reasoning)
    use = tool_use(request)
    prompt = chat_prompt(tokenizer, request, formats)
    before = prompt.before
    tokens, check = tokenizer.added_tokens, tokenizer.grammar_checker.reason
    grammar = answer_grammar(request, use, formats.forced, tokens, check)
    if grammar:
        formats = formats.forced
        grammar = behind_thought(grammar, formats, before, tokenizer.template, tokens)
    marks = formats.special_tokens(tools=bool(use.tools))
    thinking, unlimited = thinking_budget(tokenizer, request, formats, use, before, default_budget)
    predicted = predicted_tokens(tokenizer, info, request.prediction) if request.prediction else ()
    return Prepared(
        array("I", fitting_ids(tokenizer, info, request, prompt.text, formats)),
        array("I", predicted),
        grammar,
        thinking,
        tokenizer.special_tokens(marks),
        use.schemas,
        request.custom_names,
        use.is_required,
        request.has_old_calls,
        [*request.left_out, *prompt.left_out, *dropped_of_answer(request, use), *unlimited],
        before,
        continued_ids(request),
    )


@dataclass(frozen=True)
class PreparedTexts:
    """A completion request, prepared for the engine.

    Args:
        prompts: the token ids of each prompt.
        echoes: the part of each prompt that the answer repeats, which is empty without `echo`.
        grammar: the grammar that the answers must match; "": any text.
        left_out: the parts of the request that are not followed.
        continued: the tokens that the client has of each choice, which the answers go on after.
    """

    prompts: "list[array[int]]"
    echoes: list[Echo]
    grammar: str
    left_out: list[str]
    continued: "dict[int, array[int]]"


def prepare_texts(
    tokenizer: Tokenizer, raw: bytes, info: ModelInfo, most_prompts: int
) -> PreparedTexts:
    """Prepare a completion request in the text process.

    Raises `ApiError` 400 for an invalid body, too many prompts, and prompts that are too long.
    """
    body = parse_body(CompletionRequest, raw)
    given = body.prompts
    if len(given) > most_prompts:
        message = f"'prompt' has {len(given)} prompts; this server takes at most {most_prompts}."
        raise ApiError(message, code="invalid_value", param="prompt")
    prompts = text_prompts(tokenizer, info, given)
    longest, context = max(len(prompt) for prompt in prompts), info.context_length
    if longest > context:  # the engine's client checks this too, but not for `max_tokens: 0`
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
    grammar = completion_grammar(body, tokenizer.grammar_checker.reason)
    left_out, continued = dropped_keywords(body), continued_ids(body, len(ids))
    return PreparedTexts(ids, echoes, grammar, left_out, continued)
