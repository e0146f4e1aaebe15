"""How a request says whether and how long the model reasons, in the words of several servers."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Tag, WithJsonSchema

from server.schemas.fields import Body, Int, none_if_minus_one, with_minus_one

Effort = Annotated[
    Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"],
    AfterValidator(lambda effort: "xhigh" if effort == "max" else effort),
]

_BUDGET: list[dict[str, Any]] = [{"type": "integer", "minimum": 0}, {"const": -1}]
ThinkingBudget = Annotated[
    Annotated[Int, AfterValidator(with_minus_one(0))] | None,
    BeforeValidator(none_if_minus_one),
    WithJsonSchema({"anyOf": [*_BUDGET, {"type": "null"}]}),
]


class Reasoning(Body):
    effort: Effort | None = None
    enabled: bool | None = None
    max_tokens: ThinkingBudget = None


class Thinking(Body):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: ThinkingBudget = None


ThinkingSwitch = Annotated[
    Annotated[bool, Tag("bool")] | Annotated[Thinking, Tag("object")],
    Discriminator(lambda value: "bool" if isinstance(value, bool) else "object"),
]


class ReasoningBody(Body):
    """The fields about reasoning that have one meaning in all APIs of conversations."""

    reasoning_effort: Effort | None = None
    enable_thinking: bool | None = None
    # the most tokens of reasoning, in the words of Qwen, vLLM and llama.cpp
    thinking_budget: ThinkingBudget = None
    thinking_token_budget: ThinkingBudget = None
    thinking_budget_tokens: ThinkingBudget = None

    def smallest_budget(self, *others: int | None) -> int | None:
        """Return the smallest of these fields and the budgets `others`; None for no limit."""
        own = (self.thinking_budget, self.thinking_token_budget, self.thinking_budget_tokens)
        return min((budget for budget in (*own, *others) if budget is not None), default=None)
