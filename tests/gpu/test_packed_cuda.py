"""Tests that weights which travel packed expand to the same bits on CUDA as on a CPU.

They need only the dependencies of the engine.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.spec import MemorySpec, StreamSpec
from engine.weights.formats import mxfp4
from engine.weights.formats.groups import Block
from engine.weights.formats.scaled_codes import FORMS, Form, expand
from engine.weights.gguf_blocks import _SCALES_AT, expand_into
from engine.weights.gguf_file import TYPES, BlockType
from tests.engine.models import PLAIN, add_tokenizer, exact, load, prompt, request, run
from tests.engine.weights.formats.quantized_files import write
from tests.engine.weights.formats.test_linear import mxfp4_checkpoint
from tests.engine.weights.formats.test_scaled_codes import fields_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BLOCKS = [type_ for type_ in TYPES.values() if not type_.is_plain]
ROWS, COLUMNS = 5000, 1024  # more values than are expanded at a time
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("type_", BLOCKS, ids=lambda type_: type_.name)
def test_blocks_expand_to_the_bits_of_the_cpu(
    type_: BlockType, dtype: torch.dtype, turned: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS, COLUMNS // type_.size, type_.nbytes)
    blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    for at in _SCALES_AT[type_.name]:
        half = torch.tensor([0.03], dtype=torch.float16).view(torch.uint8)
        blocks[..., at : at + 2] = half
    blocks = blocks.flatten(1)
    found = []
    for device in ("cpu", "cuda"):
        size = (COLUMNS, ROWS) if turned else (ROWS, COLUMNS)
        out = torch.empty(size, dtype=dtype, device=device)
        expand_into(type_.name, blocks.to(device), out.T if turned else out)
        found.append(out.cpu())
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mxfp4_expands_to_the_bits_of_the_cpu(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 500, 90, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(100, 140, (3, 500, 90), dtype=torch.uint8, generator=generator)
    found = []
    for device in ("cpu", "cuda"):
        out = torch.empty(mxfp4.expanded_shape(blocks.shape), dtype=dtype, device=device)
        mxfp4.expand(blocks.to(device), scales.to(device), out)
        found.append(out.cpu())
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [(1, 32), (500, 128)], ids=str)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.suffixes[0])
def test_codes_with_scales_expand_to_the_bits_of_the_cpu(
    form: Form, block: Block, dtype: torch.dtype
) -> None:
    fields = fields_of(form, ROWS, COLUMNS, block)
    found = []
    for device in ("cpu", "cuda"):
        out = torch.empty(ROWS, COLUMNS, dtype=dtype, device=device)
        expand(form, *(field.to(device) for field in fields), out)
        found.append(out.cpu())
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", ["fp8-block-whole", "ct-nvfp4", "awq", "gptq4-order"])
def test_answers_with_scaled_codes_do_not_depend_on_their_form(kind: str, tmp_path: Path) -> None:
    path, _ = write(kind, "qwen3_moe", tmp_path)
    add_tokenizer(path)
    found = []
    for packed in (True, False):
        stream = StreamSpec(tier="ram", slots=2, packed=packed)
        engine = load(
            path, PLAIN, device="cuda:0", memory=MemorySpec(device=1 << 30), stream=stream
        )
        found.append(exact(run(engine, [request("a", prompt(70), logprobs=2)])))
        engine.close()
    assert found[0] == found[1]


@pytest.mark.parametrize("tier", ["resident", "ram", "disk"])
def test_answers_do_not_depend_on_the_form_of_the_weights(tier: Any, tmp_path: Path) -> None:
    mxfp4_checkpoint(tmp_path)
    add_tokenizer(tmp_path)
    asked = [request("a", prompt(70), logprobs=2), request("b", prompt(5), temperature=1.0, seed=3)]
    found = []
    for packed in (True, False):
        stream = StreamSpec(tier=tier, slots=2, packed=packed)
        memory = MemorySpec(device=1 << 30)
        engine = load(tmp_path, PLAIN, device="cuda:0", memory=memory, stream=stream)
        found.append(exact(run(engine, asked)))
        engine.close()
    assert found[0] == found[1]
