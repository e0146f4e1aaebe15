"""Log-probabilities of a prompt's own tokens, from the pass that runs the prompt.

Row p tells of token p + 1, so each row of a prompt goes through the head: block by block, as the
rows of a walk do, so that no more than 64 x V logits are held at once.
"""

from collections.abc import Callable

from engine.runtime.choices import Logits
from engine.runtime.passes import Entry
from engine.sampling.logprobs import rows_logprobs


def score_prompt(entry: Entry, logits: Logits, on_block: Callable[[], None]) -> None:
    """Score what an entry of a pass tells of its sequence's prompt, if that is wanted.

    Called before the entry's rows are kept. `on_block` is called after each block of logits: the
    head takes a while for a long prompt. A client that leaves ends it early.
    """
    sequence = entry.sequence
    top = sequence.params.prompt_logprobs
    if top is None:
        return
    shift = entry.first - sequence.pages.length  # from a place in the sequence to a row of the pass
    last = min(sequence.pages.length + entry.chain, sequence.num_prompt - 1)
    for rows in logits.parts(range(sequence.num_scored - 1 + shift, last + shift)):
        own = logits.span(rows)
        on_block()
        if sequence.is_cancelled:
            return
        tokens = [sequence.tokens[row - shift + 1] for row in rows]
        sequence.score(rows_logprobs(own, tokens, top))
