"""The YAML file of one model, `configs/models/<id>.yaml`: its keys, checks and reading."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from engine.drafting.method import facts_of
from engine.drafting.methods import available
from engine.errors import ModelError, shown
from engine.files import find_file, find_folder, read_text
from engine.parsing.selection import NO_REASONING, format_names
from engine.spec import (
    DraftSpec,
    MemorySpec,
    ModelSpec,
    Numerics,
    RopeSpec,
    StreamSpec,
    TargetSpec,
    Tier,
)
from server.config.files import Auto, ConfigError, Section, Size, parse_duration, read_section

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")  # with a quantization of GGUF files
GGUF = ".gguf"
DEVICE = re.compile(r"cpu|cuda(:\d+)?")

LARGEST_TEMPLATE = 1 << 20  # bytes of the largest .jinja file that is read

Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Few = Annotated[int, Field(ge=1, le=4096)]  # of what each takes memory in every pass
Bytes = Annotated[Size, Field(ge=2**20, le=2**50)]  # from 1 MiB to 1 PiB
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
DEFAULT_KV_DISK = 8 << 30  # bytes of idle KV on disk
LONGEST_IDLE_S = 366 * 86_400
LONGEST_HOURS = 10 * 366 * 24.0


def _device(value: str | None) -> str | None:
    if value is not None and not DEVICE.fullmatch(value):
        raise ValueError('write "auto", "cpu" or "cuda:0"')
    return value


def _idle_time(value: object) -> object:
    return None if value == "never" else parse_duration(value)


IdleTime = Annotated[
    Annotated[float, Field(ge=1, le=LONGEST_IDLE_S)] | None, BeforeValidator(_idle_time)
]
"""`never` in a file, `None` inside; otherwise seconds."""


def _method(value: str | None) -> str | None:
    if value is not None and value not in available():
        raise ValueError(f"the drafting methods are auto, {', '.join(available())}")
    return value


class RopeSection(Section):
    """The key `target.rope`: scaled positions, which make the context of a model longer."""

    factor: Annotated[float, Field(ge=1, le=1024)] = 1.0
    original: Positive | None = None

    @model_validator(mode="after")
    def _original_goes_with_a_factor(self) -> Self:
        if self.original is not None and self.factor == 1:
            raise ValueError("`original` goes with a `factor` above 1 only")
        return self


class TargetSection(Section):
    """The key `target`: the model whose tokens are the answer, and its number format."""

    source: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    dtype: Auto[Literal["bfloat16", "float16", "float32"]] = None
    quantize: Literal["nf4"] | None = None
    rope: RopeSection = RopeSection()


class DraftSection(Section):
    """The key `draft`: the method that proposes tokens, and the upper bounds of its draft trees."""

    method: Annotated[Auto[str], AfterValidator(_method)] = None
    source: str | None = None
    revision: str | None = None
    bits: Literal[4] = 4
    group: Literal[32, 64] = 32
    calibrate: bool = True
    depth: Auto[Few] = None
    width: Auto[Few] = None
    branch: Auto[Few] = None
    budget: Auto[Few] = None

    @model_validator(mode="after")
    def _keys_go_with_the_method(self) -> Self:
        facts = facts_of(self.method) if self.method is not None else None
        for key, meaning in facts.required.items() if facts is not None else ():
            if not getattr(self, key):
                raise ValueError(f"method {self.method} needs `{key}`: {meaning}")
        takes_source = facts is not None and "source" in facts.keys
        if not takes_source and (self.source or self.revision):
            takers = [name for name in available() if "source" in facts_of(name).keys]
            raise ValueError(f"`source` and `revision` go with method {', '.join(takers)} only")
        return self


class MemorySection(Section):
    """The key `memory`: the most bytes that the engine may use, most of them `auto` by default.

    `device` limits device memory, `ram` host memory, `cache` the disk space of packed weights, and
    `kv_disk` that of idle KV. `replan` says whether weights move while the model is loaded, as
    memory gets short or free.
    """

    device: Auto[Bytes] = None
    ram: Auto[Bytes] = None
    cache: Auto[Bytes] = None
    kv_disk: Annotated[Size, Field(ge=0, le=2**50)] = DEFAULT_KV_DISK
    replan: bool = True


class StreamSection(Section):
    """The key `stream`: where the target's weights are stored and how they reach the device."""

    tier: Auto[Tier] = None
    resident: Auto[Annotated[int, Field(ge=0, le=2**31 - 1)]] = None
    slots: Auto[Annotated[int, Field(ge=2, le=4096)]] = None
    packed: Auto[bool] = None
    coding: Literal["auto", "none"] = "auto"
    simulate_gbps: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    recheck_hours: Annotated[float, Field(ge=0, le=LONGEST_HOURS)] = 24.0


class SamplingSection(Section):
    """The key `sampling`: the values for requests that do not set these parameters.

    Keys that the file leaves out have the values of the model's generation_config.json, if it has
    them, else the defaults below.
    """

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Probability = 1.0
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    min_p: Probability = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    # The most tokens of a chat's answer; null: as many as the context has room for. A weak model at
    # temperature 1 may never end its answer by itself.
    max_tokens: Positive | None = 16_384
    thinking_budget: Positive | None = None  # the most tokens of reasoning

    def over(self, defaults: Iterable[tuple[str, float]]) -> Self:
        """Return a copy with these defaults, by name, for the keys that the file leaves out."""
        own = {name: value for name, value in defaults if name not in self.model_fields_set}
        return self.model_copy(update=own)


def _tools(name: str | None) -> str | None:
    return _format(name, format_names("tools"))


def _reasoning(name: str | None) -> str | None:
    return _format(name, [*format_names("reasoning"), NO_REASONING])


def _format(name: str | None, known: Sequence[str]) -> str | None:
    if name is not None and name not in known:
        raise ValueError(f"the formats are auto, {', '.join(known)}")
    return name


class ParsersSection(Section):
    """The key `parsers`: the formats in which the model writes tool calls and reasoning.

    `auto` (None) finds the format from the chat template.
    """

    tools: Annotated[Auto[str], AfterValidator(_tools)] = None
    reasoning: Annotated[Auto[str], AfterValidator(_reasoning)] = None


class ModelFile(Section):
    """The content of one model file.

    Only `target.source` is required. The model's id is not in the file: it is the file's name.
    """

    target: TargetSection
    draft: DraftSection = DraftSection()
    device: Annotated[Auto[str], AfterValidator(_device)] = None
    memory: MemorySection = MemorySection()
    stream: StreamSection = StreamSection()
    numerics: Auto[Numerics] = None
    context_length: Auto[Positive] = None
    max_sequences: Auto[Few] = None
    prefix_cache: bool = True
    aliases: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    sampling: SamplingSection = SamplingSection()
    chat_template: str | None = None  # the template itself, or the name of a .jinja file
    parsers: ParsersSection = ParsersSection()
    audit: Probability = 0.0  # share of finished answers that are checked in idle time
    idle_unload: IdleTime = None  # unload the model after this time without a request

    @model_validator(mode="after")
    def _simulated_link_is_on_cpu(self) -> Self:
        if self.stream.simulate_gbps is not None and self.device not in (None, "cpu"):
            raise ValueError("stream.simulate_gbps needs device cpu: a real link is not simulated")
        return self

    @model_validator(mode="after")
    def _quantized_weights_travel_packed(self) -> Self:
        if self.target.quantize is not None and self.stream.packed is False:
            raise ValueError(
                "stream.packed: weights of target.quantize always travel packed. Remove one of both"
            )
        return self


def read_model_file(path: Path) -> ModelFile:
    """Read and check one model file.

    In the result, relative folders are absolute, and the name of a template file is replaced by its
    text. Both are searched next to the model file, then in the configuration folder. Raises
    `ConfigError` that names file and key.
    """
    file = read_section(path, ModelFile)
    places = (path.parent, *(p.parent for p in path.parents if p.name == "models"))
    target = file.target.model_copy(
        update={"source": _source(file.target.source, places, f"{path}: target.source")}
    )
    draft = file.draft
    if draft.source is not None:
        source = _source(draft.source, places, f"{path}: draft.source")
        draft = draft.model_copy(update={"source": source})
    template = _template(file.chat_template, places, f"{path}: chat_template")
    return file.model_copy(update={"target": target, "draft": draft, "chat_template": template})


def _source(source: str, places: tuple[Path, ...], where: str) -> str:
    """Return the absolute path of the folder or GGUF file `source`, or a hub id unchanged.

    Raises `ConfigError` if it is neither.
    """
    looks_local = source.startswith((".", "/", "~"))
    for place in places:
        found = find_folder(source, place) or find_file(source, GGUF, place)
        if found is not None:
            return str(found)
    if looks_local or not HUB_ID.fullmatch(source):
        raise ConfigError(
            f"{where}: {shown(source)} is neither a folder, a GGUF file, nor a hub id (owner/name)"
        )
    return source


def _template(template: str | None, places: tuple[Path, ...], where: str) -> str | None:
    """Return the text of the chat template that a model file contains or names.

    Raises `ConfigError` if the template's file cannot be read or the template is invalid.
    """
    if template is None:
        return None
    from engine.text.template import check_template  # imports jinja, which few model files need

    try:
        if template.endswith(".jinja") and "\n" not in template:
            file = next((p / template for p in places if os.path.isfile(p / template)), None)
            if file is None:
                raise ConfigError(f"{where}: no such file: {shown(template)}")
            template, where = read_text(file, LARGEST_TEMPLATE), str(file)
        check_template(template, where)
    except ModelError as error:
        raise ConfigError(str(error)) from error
    return template


def build_spec(model_id: str, file: ModelFile) -> ModelSpec:
    """Return the engine's part of a model file.

    Sampling defaults, aliases, parsers and the chat template are used by the server only.
    """
    return ModelSpec(
        id=model_id,
        target=TargetSpec(
            **file.target.model_dump(exclude={"rope"}),
            rope=RopeSpec(**file.target.rope.model_dump()),
        ),
        draft=DraftSpec(**file.draft.model_dump()),
        device=file.device,
        memory=MemorySpec(**file.memory.model_dump()),
        stream=StreamSpec(**file.stream.model_dump()),
        numerics=file.numerics,
        context_length=file.context_length,
        max_sequences=file.max_sequences,
        prefix_cache=file.prefix_cache,
        audit=file.audit,
    )
