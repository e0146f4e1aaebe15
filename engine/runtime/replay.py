"""The replay of tokens that an earlier engine has emitted for a choice.

Output follows from weights, prompt, parameters and seed, so an answer can go on in another engine.
What a live step does after it has chosen a token is done here for each token of the tail, so that
penalties, stop rules, grammar, thinking budget and text are in the same state as in the engine that
emitted it. Its KV is computed later, in the passes of the prompt.
"""

from engine.errors import PassFailed, RequestError
from engine.messages import Tail
from engine.sequences.sequence import TokenSequence


def replay(sequence: TokenSequence, tail: Tail) -> None:
    """Bring a new sequence to its state after the tokens of its tail, which are not sent again.

    Raises `RequestError` if the answer cannot begin with them, or ends with them.
    """
    for token in tail.ids:
        if sequence.constraint is not None:
            room = sequence.num_left(len(sequence.tokens)) - 1
            sequence.constraint.note_emitted(token, room)
        try:
            is_over = sequence.emit(token)
        except PassFailed as error:  # no pass is under way that could fail
            raise RequestError(str(error), error.code) from error
        if is_over:
            raise RequestError(
                f"the tokens emitted so far end choice {tail.choice} ({sequence.finish}), so it "
                "cannot go on",
                code="invalid_request",
            )
    sequence.resume(tail.stats)
