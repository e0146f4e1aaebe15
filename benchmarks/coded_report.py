"""Compute the figures of `benchmarks.coded`: medians, ratios, and what the limits allow."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from benchmarks.coded_packing import Packing
from benchmarks.offload_report import Trial as ProcessTrial
from benchmarks.random_model import Checkpoint
from benchmarks.report_format import Bar, Figures, Plot, Table
from benchmarks.runs import describe_machine

MOST_BITS, MOST_BITS_ALONE = 7.9, 12.2
MOST_SHARE_OF_BYTES = 0.5
LEAST_SHARE, LEAST_AUTO = 0.95, 0.98
MOST_PACKING = 2.0
PLAIN_BITS = 16.0
COLUMNS = (
    "method",
    "link GB/s",
    "tokens/s plain",
    "tokens/s auto",
    "ratio",
    "allowed",
    "share",
    "bits",
    "GB plain",
    "GB auto",
    "draft ms plain",
    "draft ms auto",
    "ahead ms plain",
    "ahead ms auto",
    "pass ms plain",
    "pass ms auto",
    "compute ms",
    "decoding ms",
    "A",
    "share, own drafting",
)


@dataclass(frozen=True)
class Case:
    """One setting of the benchmark, and its bars."""

    method: str
    gbps: float | None  # of reads; None: all weights are resident
    least_ratio: float | None = None
    has_share: bool = False  # whether the share of what the limits allow has a bar

    @property
    def name(self) -> str:
        return f"{self.method}, " + ("resident" if self.gbps is None else f"{self.gbps:g} GB/s")


@dataclass(frozen=True)
class Trial:
    """The figures of one process. Figures of a pass are means over all passes but the prompt's."""

    tokens_per_second: float
    tokens_per_pass: float
    draft_s: float  # before a pass
    ahead_s: float  # of drafting while a pass waits
    pass_s: float
    compute_s: float  # of a pass, without waiting and without drafting ahead
    link_gb: float  # that travel in a pass
    bits: float  # of a weight that travels; 0 if none does
    streamed_gb: float  # plain weights that a pass streams
    decode_s: float  # of a pass, while nothing else runs; 0: nothing is decoded

    @property
    def is_coded(self) -> bool:
        return 0 < self.bits < PLAIN_BITS


@dataclass(frozen=True)
class Pair:
    """A case with plain weights and with `auto`, in turn."""

    case: Case
    gbps: float | None  # measured within the same limits
    plain: Trial
    auto: Trial

    @property
    def ratio(self) -> float:
        """Return how many times as many tokens/s `auto` gives as plain weights."""
        return self.auto.tokens_per_second / self.plain.tokens_per_second

    def allowed(self, coded: Trial, *, own_drafting: bool = False) -> float:
        """Return the ratio that link, computing and decoding allow; NaN without a link.

        It is (D + max(W / B, C)) / (D + max(Wc / B, C + decoding)), where D, W and C are those of
        plain weights, and 1 where plain weights are faster.

        Args:
            coded: a process of this method that decoded weights, for Wc and decoding.
            own_drafting: take the second D from that process, in which fewer steps were drafted
                while a pass waited.
        """
        if self.gbps is None or not coded.is_coded:
            return nan
        own, share = self.plain, coded.bits / PLAIN_BITS
        decode_s = coded.decode_s * own.streamed_gb / coded.streamed_gb
        link_s = own.link_gb / self.gbps
        coded_s = max(share * link_s, own.compute_s + decode_s)
        draft_s = coded.draft_s if own_drafting else own.draft_s
        return max((own.draft_s + max(link_s, own.compute_s)) / (draft_s + coded_s), 1.0)


def make_trial(trial: ProcessTrial) -> Trial:
    """Return the figures of a process that answered one prompt."""
    (answer,), own = trial.outcome.answers, trial.outcome.figures
    mean = {name: value / answer.passes for name, value in answer.figures.items()}
    waited = mean["copy_stall_ms"] + mean["ahead_ms"]
    return Trial(
        tokens_per_second=answer.num_tokens / answer.seconds,
        tokens_per_pass=answer.num_tokens / answer.passes,
        draft_s=mean["draft_ms"] / 1e3,
        ahead_s=mean["ahead_ms"] / 1e3,
        pass_s=mean["pass_ms"] / 1e3,
        compute_s=max(mean["pass_ms"] - waited, 0.0) / 1e3,
        link_gb=mean["link_bytes"] / 1e9,
        bits=own["link_bits"],
        streamed_gb=own["streamed_bytes"] / 1e9,
        decode_s=own["decode_s"],
    )


def make_figures(
    checkpoint: Checkpoint, packings: Sequence[Packing], pairs: Sequence[Pair]
) -> Figures:
    """Return the tables, bars and the plot of all cases."""
    cases = list(dict.fromkeys(pair.case for pair in pairs))
    rows, bars, points = [], _packing_bars(packings), dict[str, list[tuple[float, float]]]()
    for case in cases:
        own = [pair for pair in pairs if pair.case == case]
        coded = _coded_trials(pairs, case.method)
        row = _row(own, coded)
        rows.append(list(row.values()))
        bars += _case_bars(case, row)
        if case.gbps is not None:
            points.setdefault(case.method, []).append((case.gbps, row["ratio"]))
    return Figures(
        name="coded",
        title="Weights in a lossless code, a model that does not fit",
        values={"parameters_billion": checkpoint.num_parameters / 1e9, "rounds": _rounds(pairs)},
        notes=[
            "The units have the same bytes on the link, in RAM and on the disk. `allowed` is "
            "(D + max(W / B, C)) / (D + max(Wc / B, C + decoding)), where D is the drafting that "
            "is not hidden, C the computing of a pass, decoding what it takes while nothing else "
            "runs, and B the bandwidth, all measured in the round; `share` is the ratio over it. "
            "A pass that waits less drafts less ahead, so D is longer beside coded weights; "
            "`share, own drafting` has the D of either side. "
            "Packing is without calibration, from a disk whose pages are not cached."
        ],
        tables=[
            Table(
                "All units by kind of 4-bit copy",
                [
                    "4-bit copy",
                    "bits a weight",
                    "of plain units",
                    "of the model",
                    "copies s",
                    "plain s",
                    "coded s",
                    "ratio",
                    "ratio with copies",
                ],
                [
                    [*vars(packing).values(), packing.ratio, packing.ratio_with_copies]
                    for packing in packings
                ],
            ),
            Table(f"Each setting, medians, rounds: {_rounds(pairs)}", COLUMNS, rows),
        ],
        bars=bars,
        plots=[Plot("coded", "reads GB/s", "tokens/s over those of plain weights", points)],
        machine=describe_machine(),
    )


def _packing_bars(packings: Sequence[Packing]) -> list[Bar]:
    bars = []
    for packing in packings:
        has_copy = packing.copying_s > 0
        most = MOST_BITS if has_copy else MOST_BITS_ALONE
        bars.append(Bar(f"bits a weight, {packing.form}", packing.bits, "<=", most))
        if has_copy:
            what = f"coded units over plain ones, {packing.form}"
            bars.append(Bar(what, packing.of_units, "<=", MOST_SHARE_OF_BYTES))
        bars.append(Bar(f"time to pack, {packing.form}", packing.ratio, "<=", MOST_PACKING, "x"))
    return bars


def _case_bars(case: Case, row: dict[str, Any]) -> list[Bar]:
    bars = [Bar(f"{case.name}: auto over plain, tokens/s", row["ratio"], ">=", LEAST_AUTO, "x")]
    if case.least_ratio is not None:
        bars[0] = Bar(bars[0].quantity, row["ratio"], ">=", case.least_ratio, "x")
    if case.has_share:
        bars.append(Bar(f"{case.name}: share of what is allowed", row["share"], ">=", LEAST_SHARE))
    return bars


def _coded_trials(pairs: Sequence[Pair], method: str) -> list[Trial]:
    """Return the processes of a method, in all settings, that decoded weights."""
    return [pair.auto for pair in pairs if pair.case.method == method and pair.auto.is_coded]


def _row(pairs: Sequence[Pair], coded: Sequence[Trial]) -> dict[str, Any]:
    """Return the medians of a case by column."""
    allowed, allowed_own = list[float](), list[float]()
    for pair in pairs:
        for own in [pair.auto] if pair.auto.is_coded else coded[:1]:
            allowed.append(pair.allowed(own))
            allowed_own.append(pair.allowed(own, own_drafting=True))

    def plain(figure: Callable[[Trial], float]) -> float:
        return statistics.median(figure(pair.plain) for pair in pairs)

    def auto(figure: Callable[[Trial], float]) -> float:
        return statistics.median(figure(pair.auto) for pair in pairs)

    gbps = [pair.gbps for pair in pairs]
    ratio = statistics.median(pair.ratio for pair in pairs)

    def share(of: Sequence[float]) -> float:
        found = [pair.ratio / own for pair, own in zip(pairs, of, strict=False)]
        return statistics.median(found) if found else nan

    return dict(
        zip(
            COLUMNS,
            [
                pairs[0].case.method,
                None if None in gbps else statistics.median(filter(None, gbps)),
                plain(lambda own: own.tokens_per_second),
                auto(lambda own: own.tokens_per_second),
                ratio,
                statistics.median(allowed) if allowed else nan,
                share(allowed),
                auto(lambda own: own.bits),
                plain(lambda own: own.link_gb),
                auto(lambda own: own.link_gb),
                1e3 * plain(lambda own: own.draft_s),
                1e3 * auto(lambda own: own.draft_s),
                1e3 * plain(lambda own: own.ahead_s),
                1e3 * auto(lambda own: own.ahead_s),
                1e3 * plain(lambda own: own.pass_s),
                1e3 * auto(lambda own: own.pass_s),
                1e3 * plain(lambda own: own.compute_s),
                1e3 * auto(lambda own: own.decode_s),
                auto(lambda own: own.tokens_per_pass),
                share(allowed_own),
            ],
            strict=True,
        )
    )


def _rounds(pairs: Sequence[Pair]) -> int:
    cases = {pair.case for pair in pairs}
    return len(pairs) // max(len(cases), 1)
