"""Tests of answers with a thinking budget: they keep to it, and drafts do not change them."""

from dataclasses import replace
from typing import Any

import pytest

from engine.messages import Generate, Speculation, ThinkingBudget
from engine.spec import DraftSpec
from tests.engine.grammars import TAG, ids, json_checkpoint, lark
from tests.engine.models import PLAIN, SMALL, SUBSPEC, Answer, alone, exact, load, request, run
from tests.engine.runtime import test_constrained
from tests.variations import variations

END = "]]"
CLOSE = ids("\n]]\n")
TAGGED = [*ids("\n"), TAG, *ids("\n")]  # of a special token, which is shown
MOST = 20  # tokens of an answer


def budget(tokens: int, *, begin: str = "", close: list[int] = CLOSE) -> ThinkingBudget:
    end = "<tag>" if TAG in close else END
    return ThinkingBudget(tokens, begin, end, (tuple(close),))


BUDGETS = {
    "0": budget(0),
    "1": budget(1),
    "5": budget(5),
    "tag": budget(5, close=TAGGED),
    "begun": budget(3, begin="a"),
    "again": replace(budget(2, begin="a"), repeats=True),
    "large": budget(MOST + 1),
}
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"logprobs": 2},
    "hot": {"temperature": 1.0, "seed": 1, "logprobs": 0},
    "penalties": test_constrained.SAMPLINGS["penalties"],
    "bias": {"temperature": 1.0, "seed": 4, "logit_bias": ((ids("a")[0], 9.0), (TAG, -100.0))},
    "end": {"temperature": 1.0, "seed": 17, "logit_bias": ((ids("]")[0], 5.0),), "top_p": 0.9},
    "stops": {"temperature": 1.0, "seed": 6, "stop": ("\n]",), "ignore_eos": False},
    "stop ids": {"seed": 7, "stop_token_ids": (TAG, *ids("]")), "min_tokens": 4},
    "short": {"temperature": 1.0, "seed": 8, "max_tokens": 6},
}
GRAMMARS = {
    "tag": lark(f'start: /(?s:.)*/ <[{TAG}]> /[ \\n]?[ \\n]?/ ("red" | "green")'),
    "5": lark('start: thought /[ \\n]?[ \\n]?/ ("red" | "green")', 'thought[lazy]: /(?s:.)*/ "]]"'),
}
DRAFTS = {
    **test_constrained.DRAFTS,
    "same": DraftSpec("specexec", source=str(json_checkpoint()), **SMALL),
    "ngram": DraftSpec("ngram", depth=24, budget=32, tuned=False),
}


def asked() -> list[Generate]:
    made = [
        request(
            f"{limit} {how}",
            ids('ab: [1, 2]]\nab: [1, 2]]\n"red" ab: ['),
            n=2 if how == "hot" else 1,
            thinking=thinking,
            shown_tokens=(TAG,),
            **{"max_tokens": MOST, **params},
        )
        for limit, thinking in BUDGETS.items()
        for how, params in SAMPLINGS.items()
        if limit in ("5", "tag") or how in ("hot", "bias")
    ]
    for limit, grammar in GRAMMARS.items():
        for how in ("greedy", "hot", "bias", "short"):
            message = next(m for m in made if m.request_id == f"{limit} {how}")
            params = replace(message.params, grammar=grammar)
            made.append(replace(message, request_id=f"{limit} {how} formed", params=params))
    return made


@pytest.fixture(scope="module")
def want() -> dict[tuple[str, int], Answer]:
    engine = load(json_checkpoint(), PLAIN)
    answers = alone(engine, asked())
    engine.close()
    return answers


@pytest.mark.parametrize("draft", variations(DRAFTS, quick=["subspec", "same"]))
def test_no_draft_changes_an_answer(draft: str, want: dict[tuple[str, int], Answer]) -> None:
    engine = load(json_checkpoint(), DRAFTS[draft], max_sequences=8)
    predicted = tuple(ids("abc [1, 2]]\ngreen"))
    messages = [replace(message, prediction=predicted) for message in asked()]
    assert exact(run(engine, messages)) == exact(want)
    assert engine._cache.num_free_pages == engine._cache.num_pages


def test_a_device_that_chooses_whole_trees_at_once_gives_the_same_answers(
    want: dict[tuple[str, int], Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(json_checkpoint(), DRAFTS["same"], max_sequences=8)
    monkeypatch.setattr(engine, "_at_once", True)
    assert exact(run(engine, asked())) == exact(want)


def test_the_thought_has_as_many_tokens_as_its_budget(
    want: dict[tuple[str, int], Answer],
) -> None:
    for limit, close in [("0", CLOSE), ("1", CLOSE), ("5", CLOSE), ("tag", TAGGED)]:
        answer = want[f"{limit} hot", 0]
        length = BUDGETS[limit].tokens
        assert END not in answer.text[:length] and TAG not in answer.ids[:length]
        assert answer.ids[length : length + len(close)] == close
        assert len(answer.logprobs) == len(answer.ids) == MOST
    assert END not in want["large hot", 0].text
    begun = want["begun bias", 0]
    assert begun.ids[:1] == ids("a") and begun.ids[4 : 4 + len(CLOSE)] == CLOSE
    again = want["again bias", 0].text
    assert again.count("]]") > 2, "the budget of the first thought holds for all"


def test_a_thought_that_ends_by_itself_is_not_closed_again(
    want: dict[tuple[str, int], Answer],
) -> None:
    text = want["5 end", 0].text
    assert 0 <= text.find(END) < 3 and "\n]]\n" not in text


def test_other_rules_hold_while_the_thought_is_closed(want: dict[tuple[str, int], Answer]) -> None:
    assert want["5 stops", 0].finish == "stop" and "]" not in want["5 stops", 0].text
    assert len(want["5 stops", 0].ids) == 7, "the closing tokens complete the stop string"
    assert (want["tag stop ids", 0].finish, want["tag stop ids", 0].ids[-1]) == ("stop", TAG)
    assert len(want["5 short", 0].ids) == 6 and want["5 short", 0].finish == "length"
    assert want["tag bias", 0].ids[6] == TAG, "a bias does not keep the thought open"


@pytest.mark.parametrize("how", ["greedy", "hot", "bias"])
@pytest.mark.parametrize("limit", GRAMMARS)
def test_a_grammar_stays_in_step(limit: str, how: str, want: dict[tuple[str, int], Answer]) -> None:
    answer = want[f"{limit} {how} formed", 0]
    mark = "<tag>" if limit == "tag" else END
    thought, _, rest = answer.text.partition(mark)
    assert answer.finish == "stop" and rest.strip() in ("red", "green")
    assert len(ids(thought)) <= 6, "the budget, and the first closing token"


def test_closing_tokens_are_accepted_without_a_draft() -> None:
    engine = load(json_checkpoint(), DRAFTS["ngram"])
    close = [*ids("therefore\nthe answer\n"), TAG, *ids("\n\n")]
    thinking = budget(3, close=close)
    message = request("r", ids("go"), max_tokens=4 + len(close), thinking=thinking)
    message = replace(message, params=replace(message.params, shown_tokens=(TAG,)))
    (answer,) = run(engine, [message]).values()
    assert answer.ids[3:-1] == close and answer.stats is not None
    assert answer.stats.passes <= 5
    assert [o.source for o in answer.origins[4:-1]] == ["grammar"] * (len(close) - 1)
    plain = replace(message, request_id="p", speculation=Speculation("none"))
    (one_by_one,) = run(engine, [plain]).values()
    assert one_by_one.stats is not None and one_by_one.stats.drafted == 0
    assert one_by_one.exact == answer.exact


@pytest.mark.parametrize("numerics", ["strict", "fast"])
def test_the_audit_finds_no_mismatch(numerics: Any) -> None:
    engine = load(json_checkpoint(), SUBSPEC, audit=1.0, numerics=numerics)
    run(engine, asked()[::3])
    while engine.auditor.has_pending:
        audited = engine.auditor.run()
        assert audited is not None and audited.positions > 0 and audited.mismatches == 0


def test_the_audit_finds_a_thought_that_was_not_closed() -> None:
    engine = load(json_checkpoint(), SUBSPEC, audit=1.0)
    message = request("r", ids("go"), max_tokens=9, thinking=None)
    engine.add(message)
    sequence = next(engine._scheduler.all_sequences())
    while engine.has_work():
        engine.step()
    params = replace(message.params, thinking=budget(2))
    sequence.request.thinking = engine._loaded.thinking(params)
    audited = engine.auditor.run()
    assert audited is not None and audited.mismatches > 0
