"""The library's own forward of a small model with random weights, to compare ours with."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.model.library import empty_reference, modules_with_owners

LARGEST = 150_000_000  # values, 0.6 GB in float32
LARGEST_SIDE = 16_000_000  # values of a part beside the language part


class Reference:
    """The library's model of a configuration, in float32 on the CPU.

    The weights are so large that a token depends on all tokens before it. Norms and biases are
    random too, so that a tensor in the wrong place is noticed. The library raises anything for a
    configuration that it cannot run.
    """

    def __init__(self, config: Any, seed: int, *, has_side: bool = False) -> None:
        """Build the model and its random weights.

        Args:
            has_side: whether it has small parts beside the language part too. Some families run
                text through those and discard the result.
        """
        self.model = empty_reference(config, LARGEST_SIDE if has_side else 0)
        tensors = [*self.model.parameters(), *self.model.buffers()]
        weights = sum(tensor.numel() for tensor in tensors)
        if weights > LARGEST:
            raise ModelError(f"even a small model has {weights / 1e6:.0f} M weights")
        self.model.to_empty(device="cpu")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for module, owner in modules_with_owners(self.model):
                owner._init_weights(module)
            self.model.tie_weights()
            for parameter in self.model.parameters():
                _randomize(parameter)
            for name, tensor in self.model.state_dict().items():
                if name.endswith("e_score_correction_bias"):  # zeros would choose no other expert
                    tensor.add_(torch.randn(tensor.shape), alpha=0.1)

    def weights(self) -> dict[str, Tensor]:
        """Return all tensors of the model by their names."""
        tensors: dict[str, Tensor] = self.model.state_dict()
        return tensors

    def tokens(self, count: int, seed: int = 0) -> list[int]:
        """Return random tokens of the model's vocabulary."""
        size = len(self.model.get_input_embeddings().weight)
        generator = torch.Generator().manual_seed(seed)
        tokens: list[int] = torch.randint(size, (count,), generator=generator).tolist()
        return tokens

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Return the logits [rows, V] of a sequence of tokens."""
        with torch.no_grad():
            output = self.model(input_ids=torch.tensor([list(tokens)]), use_cache=False)
        return output.logits[0]  # type: ignore[no-any-return]  # the model is Any

    def decode(self, tokens: Sequence[int], count: int, at_once: int = 1) -> Tensor:
        """Return the logits of the last `count` tokens [count, V], each after the library's cache.

        The tokens before them are run together, and they one by one, as `generate` does, or
        `at_once` together.
        """
        whole = torch.tensor([list(tokens)])
        split = len(tokens) - count
        logits = []
        positions = torch.arange(len(tokens))[None]
        named = inspect.signature(self.model.forward).parameters
        with torch.no_grad():
            output = self.model(input_ids=whole[:, :split], use_cache=True)
            for index in range(split, len(tokens), at_once):
                own = slice(index, index + at_once)
                # Some families take the position of a token for 0 if they are not told.
                place = {"position_ids": positions[:, own]} if "position_ids" in named else {}
                output = self.model(
                    input_ids=whole[:, own],
                    past_key_values=output.past_key_values,
                    use_cache=True,
                    **place,
                )
                logits.append(output.logits[0])
        return torch.cat(logits)


def _randomize(parameter: Tensor) -> None:
    """Overwrite a weight by noise, or add noise to a vector, which may be a norm of ones."""
    noise = torch.randn(parameter.shape)
    if parameter.dim() < 2:
        parameter.add_(noise, alpha=0.1)
    else:
        parameter.copy_(noise * (1.5 * parameter.shape[-1] ** -0.5))
