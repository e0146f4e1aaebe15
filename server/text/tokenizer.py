"""The tokenizer of a loaded model: it renders chats and converts between text and token ids.

Only the text process has one, because a chat template is a program by the model's author, and
because calls on long texts take much time and memory.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from engine.sampling.grammar.check import GrammarChecker
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
        "conversations",
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
        """Render a chat with the model's chat template and return the text.

        Raises `ApiError` 400 if there is no template or an argument is reserved, and
        `TemplateRefusal` if the template itself raises an error.
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
        return _without_lone_surrogates(text)

    def probed(self) -> TemplateSupport:
        """Return which features of conversations the chat template supports, found by trial."""
        if not self.template:
            return self.support
        return probe(
            lambda messages, tools, arguments: self.render(
                messages,
                tools=tools,
                add_generation_prompt=True,
                continue_final_message=False,
                arguments=arguments,
            ),
            date.today().isoformat(),
        )

    @cached_property
    def template(self) -> str:
        """The text of the chat template; several are joined by line ends; "" if there is none."""
        return "\n".join(self._templates)

    @property
    def _templates(self) -> list[str]:
        template = self.chat_template or self.inner.chat_template or ""
        return [*template.values()] if isinstance(template, dict) else [str(template)]

    def compile_template(self) -> None:
        """Compile the chat template; transformers caches the compiled template.

        Raises jinja's errors. Jinja computes constant expressions when it compiles, so a template
        with `{{ 9**9**9 }}` never finishes: call this under limits.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        for template in self._templates:
            render_jinja_template(conversations=[], chat_template=template)

    def encode(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Return the token ids of a text.

        `special` adds the special tokens that the tokenizer itself adds, such as begin-of-sequence.
        """
        raw = self.inner.backend_tokenizer  # its fast batch omits offsets: a third less time
        with doing(Stage.TOKENIZER):
            (found,) = raw.encode_batch_fast([text], add_special_tokens=special)
            return tuple(found.ids)

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """The ids of the tokens that were added to the vocabulary, by their spelling."""
        return dict(self.inner.get_added_vocab())

    @cached_property
    def grammar_checker(self) -> GrammarChecker:
        """A checker of the grammars of this model's answers."""
        return GrammarChecker(self.added_tokens, len(self.bytes))

    def special_tokens(self, spellings: Iterable[str]) -> tuple[int, ...]:
        """Return the ids of the `spellings` that are special tokens of this model."""
        found = (self.bytes.special_token(spelling) for spelling in sorted(spellings))
        return tuple(token for token in found if token is not None)

    @cached_property
    def longest(self) -> int:
        """The bytes of the longest token: a text of over n times as many bytes has over n tokens.

        The bound is wrong only where a special token also consumes many blanks around it, which
        real prompts do not have.
        """
        return max(1, *map(len, self.bytes))

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of token ids; with `special`, special tokens are shown too."""
        with doing(Stage.TOKENIZER):
            text: str = self.inner.decode(list(ids), skip_special_tokens=not special)
        return text

    def names(self, ids: Sequence[int]) -> list[str]:
        """Return the spellings of token ids in the vocabulary."""
        spelled: list[str] = self.inner.convert_ids_to_tokens(list(ids))
        return spelled

    def start_of_text(self, eos: Sequence[int]) -> int | None:
        """Return the token that stands for an empty prompt, since a model needs one token at least.

        This is the begin-of-sequence token, else the first of `eos`, else None.
        """
        begin: int | None = self.inner.bos_token_id
        return begin if begin is not None else next(iter(eos), None)


def _without_lone_surrogates(text: str) -> str:
    """Return a text with U+FFFD in place of lone surrogates, which no tokenizer takes.

    JSON inside of a string, such as the arguments of a call, may have them: clients cut texts
    within an emoji.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# A template is a program by the model's author, so it may fail in any of these ways.
_TEMPLATE_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,  # includes RecursionError
)


def load_tokenizer(path: str, chat_template: str | None) -> Tokenizer:
    """Load the tokenizer of folder `path`. Raises `ModelError` when it cannot be read."""
    # Imported here because transformers takes seconds to import, and the front end must not do it.
    from engine.text.tokenizer import read_tokenizer

    inner = read_tokenizer(Path(path))
    inner.backend_tokenizer.no_truncation()
    inner.backend_tokenizer.no_padding()
    return Tokenizer(inner, TokenBytes(inner.backend_tokenizer).spelled_out(), chat_template)


def template_file(path: str, chat_template: str | None) -> str:
    """Return where the chat template of folder `path` was read from, for error messages."""
    if chat_template is not None:
        return "`chat_template` of the model's YAML file"
    own = [Path(path) / f"chat_template.{kind}" for kind in ("jinja", "json")]
    found = next((file for file in own if file.exists()), own[0])
    return str(found if found.exists() else found.with_name("tokenizer_config.json"))
