"""The speed of the steps of a load, and the text that shows a step to people."""

from collections import deque

from engine.messages import LoadProgress
from server.schemas.status import LoadStep
from server.sizes import duration_text, size_text

WINDOW_S = 10.0  # the speed is that of so many seconds
SHORTEST_S = 0.3  # a speed over less time would jump


class LoadMeter:
    """Measures the speed of the steps of one load, which come one after another."""

    def __init__(self) -> None:
        self._what = ""
        self._marks: deque[tuple[float, int]] = deque()  # time, amount done; of the step

    def measure(self, step: LoadProgress, now: float) -> LoadStep:
        """Return a step with its speed. `now` is the monotonic time."""
        if step.what != self._what or (self._marks and step.done < self._marks[-1][1]):
            self._what = step.what
            self._marks.clear()
        self._marks.append((now, step.done))
        while now - self._marks[0][0] > WINDOW_S and len(self._marks) > 2:
            self._marks.popleft()
        began, done_then = self._marks[0]
        seconds = now - began
        speed = (step.done - done_then) / seconds if seconds >= SHORTEST_S else 0.0
        return {
            "what": step.what,
            "done": step.done,
            "total": step.total,
            "unit": step.unit,
            "per_second": round(speed, 3),
            "seconds_left": round((step.total - step.done) / speed, 1)
            if speed and step.total
            else None,
        }


def percent_of(step: LoadStep) -> int | None:
    """Return how much of a step is done; None if its total is unknown."""
    return 100 * step["done"] // step["total"] if step["total"] else None


def step_text(step: LoadStep) -> str:
    """Return a step as text: "packing 42 %, 3.2 GB of 7.6 GB, 1.1 GB/s, 4 s left"."""
    percent = percent_of(step)
    what = step["what"] if percent is None else f"{step['what']} {percent} %"
    return ", ".join([what, *step_figures(step)])


def step_figures(step: LoadStep) -> list[str]:
    """Return the amounts, the speed and the time left of a step as texts, if they are known."""
    done, total, speed, left = (
        step["done"],
        step["total"],
        step["per_second"],
        step["seconds_left"],
    )
    is_bytes = step["unit"] == "bytes"
    figures: list[str] = []
    if total:
        amounts = (size_text(done), size_text(total)) if is_bytes else (str(done), str(total))
        figures.append(" of ".join(amounts) + ("" if is_bytes else f" {step['unit']}"))
    if speed:
        figures.append(f"{size_text(speed)}/s" if is_bytes else f"{speed:.1f} {step['unit']}/s")
    if left is not None and done < total:
        figures.append(f"{duration_text(left)} left")
    return figures
