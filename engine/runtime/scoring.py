"""Log-probabilities of tokens that are known already, computed in the pass that runs the prompt.

These are the prompt's own tokens, or those of an answer that goes on, if the client asks for them.

The row of token p predicts token p + 1, so each row of a prompt goes through the head. That is done
in blocks of 64 rows, as for verification, so that at most [64, V] logits are held at a time.
"""

from collections.abc import Callable

from engine.runtime.choices import Logits
from engine.runtime.passes import Entry
from engine.sampling.logprobs import rows_logprobs


def score_prompt(entry: Entry, logits: Logits, on_block: Callable[[], None]) -> None:
    """Add the log-probabilities of the known tokens that an entry's rows predict, if requested.

    Call it before the entry's rows are stored. It ends early if the client leaves.

    Args:
        on_block: called after each block of logits, since a long prompt takes a while.
    """
    sequence = entry.sequence
    if sequence.num_scored == sequence.num_to_score:
        return
    top = sequence.scored_top
    shift = entry.first - sequence.pages.length  # from a place in the sequence to a row of the pass
    last = min(sequence.pages.length + entry.num_before_tree, sequence.num_to_score - 1)
    for rows in logits.parts(range(sequence.num_scored - 1 + shift, last + shift)):
        own = logits.span(rows)
        on_block()
        if sequence.is_cancelled:
            return
        tokens = [sequence.tokens[row - shift + 1] for row in rows]
        sequence.score(rows_logprobs(own, tokens, top))
