"""The children of the nodes that a draft model has run: what the target may choose after each."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf

import torch
from torch import Tensor

from engine.drafting.calibration import Calibration
from engine.drafting.forcing import select_undetermined
from engine.drafting.growth import Growth, Node
from engine.drafting.model.guess import draft_children
from engine.sampling.logit_rules import is_path_dependent
from engine.transfer import upload

NEGLIGIBLE = -9.0  # log-probability: a child below it is not worth a node


@dataclass(frozen=True)
class Children:
    """Adds the best children of nodes to their growths.

    Args:
        name: the source of the children.
        branch: the most children of a node.
        at_once: whether the host waits for a step only once, when it reads the children.
    """

    name: str
    branch: int
    at_once: bool

    def add(
        self,
        chosen: Sequence[tuple[Growth, list[Node]]],
        logits: Tensor,
        calibration: Calibration,
    ) -> None:
        """Add the best children of all nodes of a step, by the logits [nodes, V] at their rows."""
        parts = torch.split(logits, [len(nodes) for _, nodes in chosen])
        parents: list[tuple[Growth, Node]] = []
        found: list[Tensor] = []
        for (growth, nodes), own in zip(chosen, parts, strict=True):
            rows, allowed = select_undetermined(growth, nodes)
            if rows:
                if len(rows) < len(nodes):
                    own = own[upload(torch.tensor(rows), own.device)]
                some = [nodes[row] for row in rows]
                parents += [(growth, node) for node in some]
                found.append(self._find(growth, some, own, allowed, calibration))
        if not found:
            return
        # Here alone the host waits for the step.
        children: list[tuple[list[float], list[float]]] = torch.cat(found).tolist()
        for (growth, node), (tokens, logprobs) in zip(parents, children, strict=True):
            self._add_to_node(growth, node, tokens, logprobs, calibration)

    def _find(
        self,
        growth: Growth,
        nodes: Sequence[Node],
        logits: Tensor,
        allowed: Tensor | None,
        calibration: Calibration,
    ) -> Tensor:
        """Return the best children of one growth's nodes, [nodes, 2, branch] float64.

        They are token ids, which float64 holds exactly, and log-probabilities.

        Args:
            logits: at the nodes' rows, [nodes, V].
            allowed: the tokens that a grammar allows there, [nodes, V] bool; None: all of them.
        """
        sequence = growth.sequence
        positions = [node.position + 1 for node in nodes]
        is_path = is_path_dependent(sequence.params)
        paths = [growth.path(node) for node in nodes] if is_path else None
        banned = None if allowed is not None else [sequence.banned(own) for own in positions]
        tokens, logprobs = draft_children(
            logits,
            sequence.params,
            sequence.counts,
            positions=positions,
            choice=sequence.choice,
            paths=paths,
            banned=banned,
            allowed=allowed,
            tau=calibration.tau(sequence.params),
            branch=self.branch,
            at_once=self.at_once,
        )
        return torch.stack([tokens.double(), logprobs.double()], 1)

    def _add_to_node(
        self,
        growth: Growth,
        node: Node,
        tokens: Sequence[float],
        logprobs: Sequence[float],
        calibration: Calibration,
    ) -> None:
        """Add children to a node, given their token ids and their log-probabilities."""
        gains = [calibration.calibrate(self.name, s) if s > -inf else -inf for s in logprobs]
        calibration.observe_mass(min(sum(map(exp, gains)), 1.0))
        for own, logprob, gain in zip(tokens, logprobs, gains, strict=True):
            token = int(own)
            if gain > NEGLIGIBLE or node.children.get(token):
                growth.add(node, token, logprob, gain, self.name)
