"""The rendering of a conversation, in the first of several forms that keeps all its texts."""

import logging
from collections.abc import Iterator, Sequence, Set

from engine.parsing.format import CallSyntax
from server.conversation.features import (
    Feature,
    Message,
    Render,
    Support,
    TemplateRefusal,
    TemplateSupport,
    Tool,
)
from server.conversation.presence import is_whole, marked
from server.conversation.shape import shaped, with_arguments
from server.errors import ApiError

log = logging.getLogger("understudy.text")

LONGEST_REASON = 300  # characters of a template's error text in the log
# The features that the last form but one keeps, if the template supports them.
_STRUCTURE = ("role", "type")
_KEPT = frozenset({Feature.SYSTEM, Feature.TOOLS})
_IN_WORDS = frozenset({Feature.TOOLS, Feature.CALL})


def render_conversation(
    render: Render,
    support: TemplateSupport,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    syntax: CallSyntax,
    *,
    is_format_known: bool,
) -> str:
    """Return the prompt of a conversation, which contains all its texts.

    Args:
        messages: the messages, with the arguments of their calls as JSON texts.
        syntax: the format of calls that have to be written as text.
        is_format_known: whether calls in the template's own format can be parsed. If not, tools
            and calls are always written as text, in the format `syntax`, which can be parsed.

    Raises `ApiError` 400 if the template refuses every form, or loses a text in each.
    """
    own = support.with_tools if tools and is_format_known else support.without_tools
    always = own.lacking & {Feature.NO_TOOLS} | (frozenset() if is_format_known else _IN_WORDS)
    messages = with_arguments(messages, are_texts=own.takes_text_arguments)
    reason = ""
    for form, form_tools in _forms(own, messages, tools, syntax, always):
        try:
            prompt = _whole_prompt(render, own, form, form_tools, syntax)
        except TemplateRefusal as refusal:
            reason = reason or str(refusal)
            continue
        if prompt is not None:
            return prompt
        reason = reason or "it leaves a part of the messages out"
    if _is_quoted_in(reason, [*messages, *tools]):  # the log has nothing of prompts
        reason = "its error quotes the conversation"
    log.warning("The chat template refused a conversation: %.*r", LONGEST_REASON, reason)
    raise _refused(own)


def _is_quoted_in(reason: str, value: object, key: str = "") -> bool:
    """Return whether a template's error has a text of the conversation, other than its roles."""
    match value:
        case str():
            return key not in _STRUCTURE and value != "" and value in reason
        case dict():
            return any(_is_quoted_in(reason, inner, str(own)) for own, inner in value.items())
        case list():
            return any(_is_quoted_in(reason, inner, key) for inner in value)
    return False


def _forms(
    support: Support,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    syntax: CallSyntax,
    always: Set[Feature],
) -> Iterator[tuple[list[Message], list[Tool] | None]]:
    """Yield different forms of a conversation and its tools, from unchanged to plain.

    The features `always` are missing in all forms; each further form lacks more of the features
    that the template, or some templates, do not support.
    """
    everything = frozenset(Feature) - {Feature.NO_TOOLS}
    tried: list[tuple[list[Message], list[Tool] | None]] = []
    for lacking in (
        frozenset[Feature](),
        support.lost,
        support.lacking,
        support.lacking | {Feature.TOOLS},
        everything - (_KEPT - support.lacking),
        everything,
    ):
        form = shaped(messages, tools, lacking | always, syntax)
        if form not in tried:
            tried.append(form)
            yield form


def _whole_prompt(
    render: Render,
    support: Support,
    messages: list[Message],
    tools: list[Tool] | None,
    syntax: CallSyntax,
) -> str | None:
    """Return the prompt of one form of a conversation, or None if one of its texts is lost.

    If a text is missing in the prompt, or could be in it by chance, a conversation of the same
    shape with marked texts is rendered. If all marked texts are in its prompt, the template
    supports the shape, and it changes or drops the real text on purpose.
    """
    prompt = None
    if shaped(messages, tools or (), support.lost, syntax)[0] == messages:
        prompt = render(messages, tools)
        if is_whole(messages, tools, prompt):
            return prompt
    sample = marked(messages)
    if not is_whole(sample, tools, render(sample, tools)):
        return None
    return render(messages, tools) if prompt is None else prompt


def _refused(support: Support) -> ApiError:
    refused = ", ".join(feature.value for feature in Feature if feature in support.refused)
    hint = f" What it refuses: {refused}." if refused else ""
    return ApiError(
        "The model's chat template takes these messages in none of the forms that were tried."
        f"{hint} Change the messages, or set another template with `chat_template` in the model's "
        "YAML file; the server's log has the template's own words.",
        code="chat_template_error",
        param="messages",
    )
