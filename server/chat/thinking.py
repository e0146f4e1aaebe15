"""The thinking part of a chat's answer: how it begins and ends, and how a budget closes it."""

import re
from collections.abc import Iterator, Sequence

from engine.messages import ThinkingBudget
from engine.parsing.format import Thought
from engine.parsing.selection import Formats
from server.chat.tools import ToolUse
from server.conversation.features import Message, TemplateRefusal
from server.schemas.chat import ChatRequest
from server.text.tokenizer import Tokenizer

LEFT_OUT = "thinking budget"  # its name among what is left out of a request
_THOUGHT, _ANSWER = "ProbeThought", "ProbeAnswer"  # texts that no template contains


def thinking_budget(
    tokenizer: Tokenizer,
    request: ChatRequest,
    formats: Formats,
    use: ToolUse,
    before: str,
    default: int | None,
) -> tuple[ThinkingBudget | None, list[str]]:
    """Return the budget of the thinking part of an answer, and what is left out of the request.

    There is no budget if neither the request nor the model's file sets one, if the prompt has ended
    the thinking part, or if nothing is known about thinking parts of this model. In the last case
    a budget of the request is left out.

    Args:
        formats: the formats in which the answer is read.
        use: the tools that the answer may call.
        before: the text that the answer continues.
        default: the most tokens if the request does not say it; None: no limit.
    """
    asked = request.thinking_limit
    limit = default if asked is None else asked
    if limit is None:
        return None, []
    left_out = [] if asked is None else [LEFT_OUT]
    if formats.reasoning is None:
        return None, left_out
    thought = formats.reasoning.thought(before, tokenizer.template)
    if thought is None:
        return None, []
    shown = tokenizer.special_tokens(formats.special_tokens(tools=bool(use.tools)))
    texts = _closing_texts(tokenizer, request, formats, thought, before, has_tools=bool(use.tools))
    closings = [_spell(tokenizer, text, shown) for text in texts]
    if not all(closings):
        return None, left_out
    num_begun = len(tokenizer.encode(thought.begun.lstrip(), special=False))
    budget = ThinkingBudget(
        tokens=max(limit - num_begun, 0),
        begin=thought.begin or (thought.opened if thought.repeats else ""),
        end=thought.end or thought.close,
        closings=tuple(closings),
        repeats=thought.repeats,
        is_begun=not thought.begin,
    )
    return budget, []


def _closing_texts(
    tokenizer: Tokenizer,
    request: ChatRequest,
    formats: Formats,
    thought: Thought,
    before: str,
    *,
    has_tools: bool,
) -> list[str]:
    """Return the texts that close the first thinking part and all further ones.

    Where answers consist of marked messages, the closing text begins the message of the answer, so
    that the model does not go on thinking. With tools it has to begin a call instead: then only a
    thinking part that is begun again is closed in this way.
    """
    close = _template_close(tokenizer, request, thought) or _usual_close(
        tokenizer.template, thought, before
    )
    answer, syntax = close, formats.tools.syntax
    if formats.tools is formats.reasoning and syntax is not None:
        answer += syntax.text_begin
    if not has_tools:
        return [answer]
    return [close, answer] if thought.repeats else [close]


def _template_close(tokenizer: Tokenizer, request: ChatRequest, thought: Thought) -> str:
    """Return the closing mark with the blanks around it that the template writes.

    Return "" if the template does not show past reasoning.
    """
    for text in _past_thoughts(tokenizer, request):
        found = re.search(rf"{_THOUGHT}(\n*{re.escape(thought.close)}\n*)", text)
        if found is not None and _ANSWER in text[found.end() :]:
            return found[1]
    return ""


def opening_text(tokenizer: Tokenizer, request: ChatRequest, thought: Thought, prompt: str) -> str:
    """Return the text between a prompt and the first words of the reasoning after it.

    It is "" if the prompt has opened the thinking part already. Else it is the opening mark with
    the blanks around it that the template writes, or a line end after it if the template contains
    the two together.
    """
    mark = thought.begin or thought.opened
    if prompt.rstrip().endswith(thought.opened or mark):
        return ""
    start = _rendered(tokenizer, request, [_QUESTION], add_generation_prompt=True)
    for text in _past_thoughts(tokenizer, request):
        before, found, _ = text.partition(_THOUGHT)
        opening = before.removeprefix(start)
        if found and opening != before and opening.strip() == mark.strip():
            return opening
    has_lines = f"{mark}\n" in tokenizer.template.replace("\\n", "\n")
    return f"{mark}\n" if has_lines else mark


_QUESTION: Message = {"role": "user", "content": "?"}


def _past_thoughts(tokenizer: Tokenizer, request: ChatRequest) -> Iterator[str]:
    """Yield conversations in which an answer and a call follow past reasoning.

    Some templates show past reasoning before calls only.
    """
    own = tokenizer.support.without_tools
    function = {"name": _ANSWER, "arguments": "{}" if own.takes_text_arguments else {}}
    call = {"id": "probe0001", "type": "function", "function": function}
    result = {"role": "tool", "content": "?", "tool_call_id": "probe0001"}
    reasoned = {"role": "assistant", "reasoning_content": _THOUGHT, "thinking": _THOUGHT}
    answered: Message = {**reasoned, "content": _ANSWER}
    called: Message = {**reasoned, "content": "", "tool_calls": [call]}
    for answer in ([answered], [called, result]):
        yield _rendered(tokenizer, request, [_QUESTION, *answer], add_generation_prompt=False)


def _rendered(
    tokenizer: Tokenizer,
    request: ChatRequest,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
) -> str:
    """Return a conversation as the template renders it for `request`; "" if it refuses it."""
    try:
        return tokenizer.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=False,
            arguments=request.template_arguments,
        )
    except TemplateRefusal:
        return ""


def _usual_close(template: str, thought: Thought, before: str) -> str:
    """Return the closing mark, in lines of its own if the opening mark is followed by a line end.

    Most models whose templates drop past reasoning were trained so.
    """
    if thought.begin:
        has_lines = f"{thought.begin}\n" in template.replace("\\n", "\n")
    else:
        after = thought.begun or before[len(before.rstrip()) :]
        has_lines = after.startswith("\n")
    return f"\n{thought.close}\n\n" if has_lines else thought.close


def _spell(tokenizer: Tokenizer, text: str, shown: tuple[int, ...]) -> tuple[int, ...]:
    """Return the token ids of a text within an answer; empty if the tokenizer changes the text.

    Some tokenizers put a blank before the first word of a text, so a letter comes before it.
    """
    spelling = tokenizer.bytes.showing(shown)
    for lead in ("a", ""):
        first = tokenizer.encode(lead, special=False)
        ids = tokenizer.encode(lead + text, special=False)
        own = ids[len(first) :]
        if ids[: len(first)] == first and b"".join(map(spelling.__getitem__, own)) == text.encode():
            return own
    return ()
