"""A thread that compiles the grammars of requests while passes of other requests run."""

from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread, stack_size
from typing import TYPE_CHECKING

from engine.messages import Generate

if TYPE_CHECKING:  # it imports torch, which the front end must not
    from engine.sampling.grammar.constraint import Constraint

STACK_BYTES = 16 << 20  # a grammar was checked with a quarter of it (`GrammarChecker`)


@dataclass(frozen=True)
class Compiled:
    """A request with its compiled grammar, or with the exception that compiling raised."""

    request: Generate
    constraint: "Constraint | None" = None
    error: Exception | None = None


class GrammarCompiler:
    """A queue of requests whose grammars one thread compiles, in the order of arrival.

    A grammar may take a second, in which the parser does not hold the GIL. There is one thread, so
    that a flood of such grammars takes at most one core from the passes.
    """

    def __init__(
        self,
        compile_grammar: Callable[[Generate], "Constraint | None"],
        is_wanted: Callable[[Generate], bool],
        on_compiled: Callable[[Compiled], None],
    ) -> None:
        """Start the thread, which calls all three functions.

        Args:
            compile_grammar: returns the compiled grammar of a request.
            is_wanted: returns False for a request whose client has left.
            on_compiled: receives each request that was wanted.
        """
        self._compile = compile_grammar
        self._is_wanted = is_wanted
        self._on_compiled = on_compiled
        self._requests: SimpleQueue[Generate] = SimpleQueue()
        before = stack_size(STACK_BYTES)
        Thread(target=self._run, name="grammar compiler", daemon=True).start()
        stack_size(before)

    def submit(self, request: Generate) -> None:
        """Queue a request for the thread."""
        self._requests.put(request)

    def _run(self) -> None:
        while True:
            request = self._requests.get()
            if not self._is_wanted(request):
                continue
            try:
                compiled = Compiled(request, self._compile(request))
            except Exception as error:  # raised again by the thread that takes the message
                compiled = Compiled(request, error=error)
            self._on_compiled(compiled)
