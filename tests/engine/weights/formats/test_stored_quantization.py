"""Tests of serving checkpoints that are stored in 4 bits: packed nf4 and expanded MXFP4."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from engine.spec import DraftSpec
from tests.engine.checkpoints import save_tiny
from tests.engine.models import PLAIN, SUBSPEC, add_tokenizer, load, prompt, request, run
from tests.engine.weights.formats.test_linear import mxfp4_checkpoint, quantize_checkpoint


def nf4(folder: Path) -> dict[str, Tensor]:
    save_tiny("qwen2", folder, dtype=torch.float32, layers=2, max_shard_size="1GB")
    return quantize_checkpoint(folder, nested=True)


@pytest.mark.parametrize(
    ("write", "family", "dtype", "draft"),
    [
        (nf4, "qwen2", torch.float32, SUBSPEC),
        (mxfp4_checkpoint, "gpt_oss", torch.bfloat16, DraftSpec("ngram")),
    ],
    ids=["nf4", "mxfp4"],
)
def test_answers_are_computed_with_the_dense_values(
    write: Callable[[Path], dict[str, Tensor]],
    family: str,
    dtype: torch.dtype,
    draft: DraftSpec,
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)  # the blocks of the MXFP4 checkpoint are random
    values = write(tmp_path)
    add_tokenizer(tmp_path)
    asked = request("r", prompt(20), max_tokens=12, logprobs=0)
    plain = run(load(tmp_path, PLAIN), [asked])[("r", 0)]
    drafted = run(load(tmp_path, draft), [asked])[("r", 0)]
    assert drafted.exact == plain.exact
    layers = 2 if family == "qwen2" else 1
    dense: Any = AutoModelForCausalLM
    config = AutoConfig.from_pretrained(save_tiny(family, tmp_path / "dense", layers=layers))
    model = dense.from_pretrained(tmp_path / "dense", config=config, dtype=dtype)
    model.load_state_dict(values, strict=False)
    logits = model(torch.tensor([prompt(20) + plain.ids])).logits[0, 19:-1].float()
    for row, entry in zip(logits.log_softmax(-1), plain.logprobs, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token].item(), abs=0.2)
