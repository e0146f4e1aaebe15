"""The replay of tokens that were emitted earlier for a choice, by another engine or request.

Output follows from weights, prompt, parameters and seed, so an answer can go on in another engine.
What a live step does after it has chosen a token is done here for each token of the tail, so that
penalties, stop rules, grammar, thinking budget and text are in the same state as in the engine that
emitted it. Its KV is computed later, in the passes of the prompt.
"""

from engine.errors import PassFailed, RequestError
from engine.messages import CONTINUED, Tail
from engine.sequences.sequence import TokenSequence


def replay(sequence: TokenSequence, tail: Tail) -> None:
    """Bring a new sequence to its state after the tokens of its tail.

    If they have not been read, they are sent as a replay before the first new token, and they may
    end the sequence, which then has a `finish`.

    Raises `RequestError` if the answer cannot begin with them, or go on after them.
    """
    for number, token in enumerate(tail.ids, 1):
        if sequence.constraint is not None:
            room = sequence.num_left(len(sequence.tokens)) - 1
            sequence.constraint.note_emitted(token, room)
        elif (forced := sequence.forced()) and forced[0] != token:
            reason = f"is {token}, but the thinking budget forces {forced[0]}"
            raise _refusal(tail, number, reason)
        try:
            is_over = sequence.emit(token, source=CONTINUED)
        except RequestError as error:
            raise _refusal(tail, number, f"does not match the grammar ({error})") from error
        except PassFailed as error:  # no pass is under way that could fail
            raise _refusal(tail, number, f"cannot be read ({error})") from error
        if is_over and (tail.is_read or number < len(tail.ids)):
            raise _refusal(tail, number, f"ends the answer ({sequence.finish})")
    sequence.resume(tail)


def _refusal(tail: Tail, number: int, reason: str) -> RequestError:
    return RequestError(
        f"Choice {tail.choice} cannot go on after the given tokens: token {number} of "
        f"{len(tail.ids)} {reason}. Give the tokens that an answer to this same request had, from "
        "the first one on.",
        "invalid_value",
        "continue_tokens",
    )
