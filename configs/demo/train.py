"""Train the built-in demo model: `python configs/demo/train.py`.

This writes the tokenizer and both models into `configs/demo/target` and `configs/demo/draft`, and
the held-out prompts into `held_out.json`. It takes less than an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[2]))

from configs.demo.corpus import (
    held_out_chats,
    training_chats,
    training_sheets,
    training_stories,
)
from configs.demo.vocabulary import (
    CONTEXT,
    END,
    END_OF_TEXT,
    VOCABULARY,
    Document,
    Encoder,
    batches,
    render,
    template_only,
    token_id,
    train_tokenizer,
)

HERE = Path(__file__).parent
# Hidden size, intermediate size, layers.
SIZES = {"target": (256, 640, 6), "draft": (128, 320, 3)}
BATCH_TOKENS = 2048
# Share of all steps, row length: short rows are cheap, long rows train large positions.
PHASES = ((0.85, 256), (0.12, 512), (0.03, 1024))
LEARNING_RATE = 3e-3
RESUMED_RATE = 1.5e-3  # lower, so that a trained model changes less
WEIGHT_DECAY = 0.1
WARM_UP_STEPS = 25
STORE_EVERY = 150


def new_model(name: str, eos: list[int], pad: int) -> LlamaForCausalLM:
    """Return a Llama with random weights, heads of 64 and two query heads per key head."""
    hidden, intermediate, layers = SIZES[name]
    heads = hidden // 64
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=None, eos_token_id=eos, pad_token_id=pad, do_sample=False
    )
    return model


def loss_of(model: LlamaForCausalLM, ids: Tensor, learned: Tensor) -> Tensor:
    """Return the mean cross-entropy of the learned tokens; the head runs only on their rows."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(ids, use_cache=False).last_hidden_state
        places = learned[:, 1:].flatten().nonzero().squeeze(1)
        picked = hidden[:, :-1].flatten(0, 1)[places]
        logits = F.linear(picked, model.lm_head.weight)
    return F.cross_entropy(logits.float(), ids[:, 1:].flatten()[places])


def optimizers(model: LlamaForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    embedding = [model.model.embed_tokens.weight]
    return [
        torch.optim.Muon(
            matrices,
            lr=learning_rate,
            weight_decay=WEIGHT_DECAY,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [{"params": embedding, "weight_decay": 0.01}, {"params": norms, "weight_decay": 0.0}],
            lr=learning_rate,
            betas=(0.9, 0.97),
        ),
    ]


def store(model: LlamaForCausalLM, folder: Path) -> None:
    """Save a bfloat16 copy; the model in training stays float32."""
    copy.deepcopy(model).bfloat16().save_pretrained(folder)


def rate(step: int, steps: int) -> float:
    """Return the share of the learning rate: a short warm-up, then a half cosine to 1 %."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def schedule(documents: list[Document], steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all batches of a training run, phase after phase."""
    for seed, (share, length) in enumerate(PHASES):
        stream = batches(documents, length, BATCH_TOKENS, seed)
        for _ in range(round(share * steps)):
            yield next(stream)


def fit(
    model: LlamaForCausalLM,
    documents: list[Document],
    steps: int,
    learning_rate: float,
    folder: Path,
) -> None:
    """Train in place; print the smoothed loss and the speed; store the model regularly."""
    optimizer_list = optimizers(model, learning_rate)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: rate(step, steps)) for o in optimizer_list
    ]
    model.train()
    began, smooth = time.monotonic(), 0.0
    for step, (ids, learned) in enumerate(schedule(documents, steps)):
        loss = loss_of(model, ids, learned)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizer_list, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        now = loss.item()
        smooth = now if step == 0 else 0.95 * smooth + 0.05 * now
        if step % 25 == 0:
            seconds = time.monotonic() - began
            speed = (step + 1) * BATCH_TOKENS / seconds
            report = f"{step:5}/{steps} loss {smooth:.3f} {speed:6.0f} tok/s {seconds:.0f} s"
            print(report, flush=True)
        if (step + 1) % STORE_EVERY == 0:
            store(model, folder)
    store(model, folder)


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, documents: list[Document]) -> float:
    """Return the mean loss of the learned tokens of held-out texts."""
    total, count = 0.0, 0
    for document in documents:
        learned = torch.tensor([document.learned])
        num_learned = int(learned[:, 1:].sum())
        loss = loss_of(model, torch.tensor([document.ids]), learned)
        total += loss.item() * num_learned
        count += num_learned
    return total / count


def write_held_out() -> None:
    """Write the held-out prompts with the answers of the generators."""
    entries = [
        {
            "family": chat.family,
            "messages": chat.prompt,
            "tools": chat.tools,
            "enable_thinking": chat.thinking,
            "answer": chat.messages[-1],
        }
        for chat in held_out_chats()
    ]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (HERE / "held_out.json").write_text(f"[\n{lines}\n]\n")


def build_documents(
    tokenizer: PreTrainedTokenizerFast | None, scale: float = 1.0
) -> tuple[PreTrainedTokenizerFast, list[Document], list[Document]]:
    """Return the tokenizer (trained unless given), the training and the held-out documents."""
    template = HERE / "chat_template.jinja"
    chats, stories = training_chats(scale=scale), training_stories(scale=scale)
    bare = template_only(template)
    texts = [render(chat, bare) for chat in chats]
    if tokenizer is None:
        tokenizer = train_tokenizer([*texts, *stories], template)
    encoder = Encoder(tokenizer)
    documents = [encoder.chat(text) for text in texts]
    documents += [encoder.plain(text) for text in stories]
    documents += [encoder.sheet(text) for text in training_sheets(scale=scale)]
    held_out = [encoder.chat(render(chat, bare)) for chat in held_out_chats()]
    return tokenizer, documents, held_out


def main() -> None:
    """Train the tokenizer, the target and the draft, each with a fixed seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="for the target")
    parser.add_argument("--draft-steps", type=int, default=1200)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--only", choices=tuple(SIZES), help="train one of the two")
    parser.add_argument("--resume", action="store_true", help="go on from the models in --out")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stored = (
        PreTrainedTokenizerFast.from_pretrained(options.out / "target") if options.resume else None
    )
    tokenizer, documents, held_out = build_documents(stored)
    num_tokens = sum(len(d.ids) for d in documents)
    print(f"{len(documents)} documents, {num_tokens} tokens", flush=True)
    write_held_out()
    end = token_id(tokenizer, END)
    end_of_text = token_id(tokenizer, END_OF_TEXT)
    for name, steps in (("target", options.steps), ("draft", options.draft_steps)):
        if options.only not in (None, name):
            continue
        torch.manual_seed(0)
        learning_rate = RESUMED_RATE if options.resume else LEARNING_RATE
        if options.resume:
            model = LlamaForCausalLM.from_pretrained(options.out / name, dtype=torch.float32)
        else:
            model = new_model(name, [end, end_of_text], end_of_text)
        tokenizer.save_pretrained(options.out / name)
        fit(model, documents, steps, learning_rate, options.out / name)
        print(f"{name}: held-out loss {held_out_loss(model, held_out):.3f}", flush=True)


if __name__ == "__main__":
    main()
