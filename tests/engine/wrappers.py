"""Tiny random checkpoints of models that take images beside text."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForMultimodalLM, LlavaConfig
from transformers.models.gemma3 import Gemma3Config
from transformers.models.gemma4 import Gemma4Config
from transformers.models.llama4 import Llama4Config
from transformers.models.mistral3 import Mistral3Config
from transformers.models.qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen3_5 import Qwen3_5Config
from transformers.models.qwen3_vl import Qwen3VLConfig

from tests.engine.checkpoints import HEAD_DIM, HIDDEN, tiny_config
from tests.engine.models import VOCAB, add_tokenizer
from tests.engine.structures import structure_config

_SIDE = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
_TOWER = {**_SIDE, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
_QWEN_TOWER = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def _text(family: str, **changes: Any) -> dict[str, Any]:
    return {**tiny_config(family, vocab_size=VOCAB).to_dict(), **changes}


def _qwen_text(model_type: str) -> dict[str, Any]:
    return _text(
        "qwen3",
        model_type=model_type,
        architectures=None,
        rope_parameters=_MROPE,
        head_dim=HEAD_DIM,
    )


def wrapper_config(family: str) -> Any:
    """Return the configuration of a tiny model of one of `WRAPPERS`."""
    tower: dict[str, Any]
    match family:
        case "gemma3":
            return Gemma3Config(
                text_config=_text("gemma3"),
                vision_config=_TOWER,
                mm_tokens_per_image=4,
            )
        case "mistral3":
            return Mistral3Config(
                text_config=_text("mistral"),
                vision_config={"model_type": "pixtral", **_TOWER, "head_dim": 16},
            )
        case "llava":
            tower = {"model_type": "clip_vision_model", **_TOWER}
            return LlavaConfig(text_config=_text("llama"), vision_config=tower)
        case "qwen2_5_vl":
            tower = {**_QWEN_TOWER, "out_hidden_size": HIDDEN, "fullatt_block_indexes": [0]}
            return Qwen2_5_VLConfig(text_config=_qwen_text("qwen2_5_vl_text"), vision_config=tower)
        case "qwen3_vl":
            tower = {**_QWEN_TOWER, "out_hidden_size": HIDDEN, "deepstack_visual_indexes": [0]}
            return Qwen3VLConfig(text_config=_qwen_text("qwen3_vl_text"), vision_config=tower)
        case "qwen3_5":
            tower = {**_QWEN_TOWER, "out_hidden_size": HIDDEN}
            return Qwen3_5Config(
                text_config=_text("qwen3_5_text", architectures=None), vision_config=tower
            )
        case "gemma4":
            return Gemma4Config(
                text_config=structure_config("gemma4_text").to_dict(),
                vision_config={**_SIDE, "num_attention_heads": 2, "num_key_value_heads": 2},
            )
        case "llama4":
            return Llama4Config(
                text_config=structure_config("llama4_text").to_dict(), vision_config=_TOWER
            )
    raise AssertionError(family)


WRAPPERS = ("gemma3", "mistral3", "llava", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma4", "llama4")


def save_wrapper(family: str, folder: Path, *, published_names: bool = True) -> Path:
    """Write a tiny checkpoint whose vision tower holds NaN, and a tokenizer.

    Args:
        published_names: whether the tensors have the names of published checkpoints, which
            `save_pretrained` writes; else those of the library's own modules.
    """
    auto: Any = AutoModelForMultimodalLM
    model = auto.from_config(wrapper_config(family), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        inside = dict(model.get_decoder().named_parameters())
        own = {id(parameter) for parameter in inside.values()}
        own.add(id(model.get_output_embeddings().weight))
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) not in own:
                parameter.fill_(torch.nan)
            elif parameter.dim() == 1:
                parameter.add_(noise, alpha=0.1)
            else:
                parameter.copy_(noise * (1.5 * HIDDEN**-0.5))
        model.get_input_embeddings().weight.mul_(0.3)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if not published_names:
        tensors = {name: t.contiguous().clone() for name, t in model.state_dict().items()}
        if model.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        save_file(tensors, folder / "model.safetensors")
    add_tokenizer(folder)
    return folder


def write_config_alone(family: str, folder: Path) -> Path:
    """Write only the config.json of a tiny model of `WRAPPERS`."""
    values = {**wrapper_config(family).to_dict(), "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(values))
    return folder
