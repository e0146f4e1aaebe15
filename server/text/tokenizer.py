"""The tokenizer of a loaded model: rendering chats and turning text into ids.

Only the text process has one: templates are programs of a model's author, and calls on long texts
take a while and much memory.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from engine.text.detokenize import TokenBytes
from server.conversation.features import TemplateRefusal, TemplateSupport
from server.conversation.probe import probe
from server.errors import ApiError
from server.text.stages import Stage, doing

RESERVED_TEMPLATE_ARGUMENTS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer, its chat template, and the bytes of each of its tokens."""

    inner: Any  # transformers' tokenizer: its classes carry no types
    bytes: TokenBytes
    chat_template: str | None
    support: TemplateSupport = field(default_factory=TemplateSupport)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        arguments: Mapping[str, Any],
    ) -> str:
        """Return the text of a chat.

        Raises `ApiError` 400 if there is no template, and `TemplateRefusal` if it raises an error.
        """
        for name in arguments:
            if name in RESERVED_TEMPLATE_ARGUMENTS:
                param = f"chat_template_kwargs.{name}"
                raise ApiError(f"'{param}' cannot be set.", code="invalid_value", param=param)
        if not self.template:
            raise ApiError(
                "This model has no chat template. Use /v1/completions, or set `chat_template` in "
                "the model's YAML file.",
                code="chat_template_missing",
                param="messages",
            )
        try:
            with doing(Stage.TEMPLATE):
                text: str = self.inner.apply_chat_template(
                    [dict(m) for m in messages],
                    tools=None if tools is None else [dict(tool) for tool in tools],
                    chat_template=self.chat_template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    **arguments,
                )
        except _TEMPLATE_ERRORS as error:
            raise TemplateRefusal(str(error) or type(error).__name__) from error
        return text

    def probed(self) -> TemplateSupport:
        """Return what the chat template takes of conversations."""
        if not self.template:
            return self.support
        return probe(
            lambda messages, tools: self.render(
                messages,
                tools=tools,
                add_generation_prompt=True,
                continue_final_message=False,
                arguments={},
            )
        )

    @cached_property
    def template(self) -> str:
        """The text of the chat template; of several, that of all. "" without one."""
        return "\n".join(self._templates)

    @property
    def _templates(self) -> list[str]:
        template = self.chat_template or self.inner.chat_template or ""
        return [*template.values()] if isinstance(template, dict) else [str(template)]

    def compile_template(self) -> None:
        """Compile the chat template, which the library then remembers.

        Raises what jinja raises. Constants are computed here, so `{{ 9**9**9 }}` never ends.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        for template in self._templates:
            render_jinja_template(conversations=[], chat_template=template)

    def encode(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Token ids of a text; `special` adds the tokenizer's own (such as begin-of-sequence)."""
        raw = self.inner.backend_tokenizer  # without places in the text: a third of the time less
        with doing(Stage.TOKENIZER):
            (found,) = raw.encode_batch_fast([text], add_special_tokens=special)
            return tuple(found.ids)

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """The tokens that are never part of others, by their spelling."""
        return dict(self.inner.get_added_vocab())

    def special_tokens(self, spellings: Iterable[str]) -> tuple[int, ...]:
        """The ids of those that are special tokens of this model."""
        found = (self.bytes.special_token(spelling) for spelling in sorted(spellings))
        return tuple(token for token in found if token is not None)

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token: a text of more bytes than n times these has over n tokens.

        (Not so where a special token swallows the blanks around it; nobody needs so many blanks.)
        """
        return max(1, *map(len, self.bytes))

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of ids; `special` shows special tokens too."""
        with doing(Stage.TOKENIZER):
            text: str = self.inner.decode(list(ids), skip_special_tokens=not special)
        return text

    def names(self, ids: Sequence[int]) -> list[str]:
        """How the vocabulary spells ids."""
        spelled: list[str] = self.inner.convert_ids_to_tokens(list(ids))
        return spelled

    def start_of_text(self, eos: Sequence[int]) -> int | None:
        """What an empty prompt consists of: models cannot continue nothing at all."""
        begin: int | None = self.inner.bos_token_id
        return begin if begin is not None else next(iter(eos), None)


# a template is a program of the model's author: it fails in any of these ways
_TEMPLATE_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,  # also of too deep a recursion
)


def load_tokenizer(path: str, chat_template: str | None) -> Tokenizer:
    """Load the tokenizer of folder `path`. Raises `ModelError` when it cannot be read."""
    # On first use: transformers takes seconds to import, and the front end must never do it.
    from engine.text.tokenizer import read_tokenizer

    inner = read_tokenizer(Path(path))
    inner.backend_tokenizer.no_truncation()
    inner.backend_tokenizer.no_padding()
    return Tokenizer(inner, TokenBytes(inner.backend_tokenizer).spelled_out(), chat_template)


def template_file(path: str, chat_template: str | None) -> str:
    """Return where the chat template of folder `path` was read, for messages."""
    if chat_template is not None:
        return "`chat_template` of the model's YAML file"
    own = Path(path) / "chat_template.jinja"
    return str(own if own.exists() else own.with_name("tokenizer_config.json"))
