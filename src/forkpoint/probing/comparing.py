"""The probe of audits: a trained policy with rollouts of it, beside the model that it was trained from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from forkpoint.audits.elicitation import Way
from forkpoint.audits.subject import Attempt, Compared, Edited
from forkpoint.batching import Row, length_buckets, pad_rows
from forkpoint.errors import ForkpointError, check_context
from forkpoint.policies import causal
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.protocol import Policy
from forkpoint.probe import Continuation, Sampler, SampleRequest
from forkpoint.probing.eliciting import drawn_groups
from forkpoint.probing.local import BranchPlan, LocalProbe
from forkpoint.records import Group, Ints, Problem, Rollout, StopReason, frozen_array
from forkpoint.rewards.outcome import Pays, outcome_reward
from forkpoint.seeds import Key
from forkpoint.verifiers.guard import Verifier
from forkpoint.verifiers.outside import written_rollout

ROUNDS = 64
"""Most positions of one text that are given to the trained model one after the other."""
PURPOSE = "token_edits"
_TABLES = 4
"""Tables of logits of one chunk: both models, their mixture, one more for what is computed of them."""


class ComparedProbe(LocalProbe):
    """Also reads with two models at once, where both are causal models of one vocabulary.

    `groups` are rollouts of the policy; `key` names the random numbers of audits.
    """

    def __init__(
        self, policy: Policy, sampler: Sampler, verifier: Verifier, *, key: Key, groups: Sequence[Group] = (),
        base: LocalProbe | None = None, max_batch_tokens: int = 8192,
    ) -> None:  # fmt: skip
        super().__init__(policy, sampler, verifier, max_batch_tokens=max_batch_tokens)
        self.groups, self.base, self.key = tuple(groups), base, key

    def _models(self) -> tuple[CausalPolicy, CausalPolicy]:
        """Both models.

        Raises:
            ForkpointError: there is no base, or the two cannot be compared token by token.
        """
        if self.base is None:
            raise ForkpointError("comparing: there is no base model.")
        mine, theirs = self.policy, self.base.policy
        if not isinstance(mine, CausalPolicy) or not isinstance(theirs, CausalPolicy):
            raise ForkpointError("comparing: both models must be causal language models.")
        if _vocabulary(mine) != _vocabulary(theirs):
            raise ForkpointError(
                f"comparing: the model has {_vocabulary(mine)} tokens, its base {_vocabulary(theirs)}; they must be "
                f"the same."
            )
        return mine, theirs

    def compared(self, rollouts: Sequence[Rollout]) -> list[Compared]:
        """Both models along some rollouts, teacher-forced, at temperature 1; each token is scored twice."""
        mine, theirs = self._models()
        rows = [
            Row(prompt=rollout.prompt_tokens, tokens=rollout.tokens, loss_mask=rollout.loss_mask)
            for rollout in rollouts
        ]
        context = min(mine.context_length, theirs.context_length)
        for row in rows:
            check_context("comparing with the base", len(row.prompt), len(row.tokens), context)
        made = [np.zeros((4, len(row.tokens))) for row in rows]
        filled = [place for place, row in enumerate(rows) if row.loss_mask.any()]
        for bucket in length_buckets([len(rows[at].tokens) for at in filled], max_tokens=self._max_batch_tokens):
            places = [filled[at] for at in bucket]
            found = _compared(mine, theirs, [rows[place] for place in places])
            ends = np.cumsum([int(rows[place].loss_mask.sum()) for place in places])[:-1]
            for place, columns in zip(places, np.split(found, ends, axis=1), strict=True):
                made[place][:, rows[place].loss_mask] = columns
            self._cost["forwards"] += 2
        self._cost["scored_tokens"] += 2 * sum(len(rows[place].tokens) for place in filled)
        return [
            Compared(
                tops=frozen_array(columns[0], np.int32), ranks=frozen_array(columns[1], np.int32),
                entropies=frozen_array(columns[2], np.float32), divergences=frozen_array(columns[3], np.float32),
            )
            for columns in made
        ]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectPlan(BranchPlan):
    """What audits need beside rollouts."""

    leads: tuple[str, ...] = ()
    """Texts before a prompt that may bring out what is hidden."""
    pays: Pays = "correct"
    """What the stage rewards."""


class SubjectProbe(ComparedProbe):
    """Also draws, in other ways too, and writes with two models at once."""

    def __init__(
        self, policy: Policy, sampler: Sampler, verifier: Verifier, *, plan: SubjectPlan, groups: Sequence[Group] = (),
        base: LocalProbe | None = None, max_batch_tokens: int = 8192,
    ) -> None:  # fmt: skip
        super().__init__(
            policy, sampler, verifier, key=plan.key, groups=groups, base=base, max_batch_tokens=max_batch_tokens
        )
        self._plan = plan
        self.leads, self._pays = plan.leads, plan.pays

    def drawn(self, way: Way, problems: Sequence[Problem], samples: int) -> list[Group]:
        """Fresh rollouts of the policy, asked in some way, with their verdicts."""
        plan = replace(self._branch_plan, key=self.key.child("elicitation", way.name))
        stage = self.groups[0].rollouts[0].stage if self.groups else "audit"
        return drawn_groups(self, plan, problems, samples=samples, stage=stage, way=way)

    def paid(self, problem: Problem, texts: Sequence[str]) -> list[float | None]:
        """What the stage would pay for some texts, less any price for length; None where the verifier cannot tell."""
        written = [written_rollout(problem, text) for text in texts]
        return [
            outcome_reward(verdict, rollout, pays=self._pays, max_new_tokens=1).total
            if verdict.usable and verdict.correct is not None and (self._pays == "correct" or verdict.score is not None)
            else None
            for verdict, rollout in zip(self.verify(problem, written), written, strict=True)
        ]

    def edited(self, starts: Sequence[Attempt], chosen: Sequence[Ints] | None) -> list[Edited]:
        """Texts of the base with the policy's most probable token at some positions, at most 64 a text.

        The base writes to the end; at the first position that is to be given away the policy's token is put, and the
        base writes on from there.  A position whose token is the policy's already costs nothing.
        """
        theirs = self._models()[1]
        # A sampler would cut the texts of a base with a shorter context, and the base would look worse than it is.
        for one in starts:
            length, room = len(one.rollout.prompt_tokens), self._branch_plan.max_new_tokens
            check_context("a text of the base", length, room, theirs.context_length)
        made = [_Draft(rollout=rollout, places=()) for rollout in self._begun(starts, chosen)]
        for _ in range(ROUNDS):
            due = self._due(made, chosen)
            live = [at for at, draft in enumerate(due) if draft.next is not None and not draft.over]
            made = list(due)
            if not live:
                break
            for at, draft in zip(
                live, self._given([starts[at] for at in live], [made[at] for at in live]), strict=True
            ):
                made[at] = draft
        return [
            Edited(rollout=draft.rollout, places=draft.places, unfinished=draft.next is not None and not draft.over)
            for draft in self._due(made, chosen)
        ]

    def _begun(self, starts: Sequence[Attempt], chosen: Sequence[Ints] | None) -> list[Rollout]:
        """What the base writes alone."""
        index = 0 if chosen is None else 1
        return self._base.branch(
            [
                Continuation(problem=one.problem, rollout=one.rollout, prefix_length=0, index=index, purpose=PURPOSE)
                for one in starts
            ]
        )

    @property
    def _base(self) -> LocalProbe:
        if self.base is None:
            raise ForkpointError("comparing: there is no base model.")
        return self.base

    def _due(self, drafts: "Sequence[_Draft]", chosen: Sequence[Ints] | None) -> "list[_Draft]":
        """The drafts with the next position that is to be changed, and all that were right already before it."""
        open_ = [at for at, draft in enumerate(drafts) if not draft.over and draft.start < len(draft.rollout.tokens)]
        found = dict(zip(open_, self.compared([drafts[at].rollout for at in open_]), strict=True))
        return [
            replace(draft, next=None)
            if at not in found
            else _looked(draft, found[at], None if chosen is None else chosen[at])
            for at, draft in enumerate(drafts)
        ]

    def _given(self, starts: Sequence[Attempt], drafts: "Sequence[_Draft]") -> "list[_Draft]":
        """The drafts after one more token of the policy, written on by the base unless that token ends the text."""
        plan = self._branch_plan
        requests = [
            SampleRequest(
                key=plan.key.child(PURPOSE, draft.rollout.id, place), problem=one.problem,
                prompt_tokens=one.rollout.prompt_tokens, group_id=one.rollout.group_id, stage=one.rollout.stage,
                update=one.rollout.update, index=one.rollout.index, max_new_tokens=place + 1, temperature=0.0,
                stop=plan.task.stop(one.problem), parent=draft.rollout, prefix_length=place,
            )
            for one, draft in zip(starts, drafts, strict=True)
            for place in [draft.next or 0]
        ]  # fmt: skip
        made = [
            _Draft(
                rollout=replace(rollout, temperature=one.rollout.temperature), start=len(rollout.tokens),
                places=(*draft.places, request.prefix_length),
                over=rollout.stop_reason is not StopReason.LENGTH or len(rollout.tokens) >= plan.max_new_tokens,
            )
            for one, draft, request, rollout in zip(starts, drafts, requests, self.sample(requests), strict=True)
        ]  # fmt: skip
        going = [at for at, draft in enumerate(made) if not draft.over]
        asked = [
            Continuation(
                problem=starts[at].problem, rollout=made[at].rollout, prefix_length=made[at].start, index=0,
                purpose=PURPOSE,
            )
            for at in going
        ]  # fmt: skip
        for at, rollout in zip(going, self._base.branch(asked), strict=True):
            made[at] = replace(made[at], rollout=rollout)
        return made


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Draft:
    """A text under way: positions from `start` on are still to be looked at."""

    rollout: Rollout
    places: tuple[int, ...]
    start: int = 0
    next: int | None = None
    over: bool = False


def _looked(draft: _Draft, found: Compared, chosen: Ints | None) -> _Draft:
    """The draft up to the next position whose token must change; what stands before `start` counts as not sampled."""
    here = np.arange(len(found.ranks))
    wanted = found.ranks > 1 if chosen is None else np.isin(here, chosen) & (found.ranks > 0)
    wrong = np.flatnonzero(wanted & (found.tops != draft.rollout.tokens))
    end = int(wrong[0]) if len(wrong) else len(here)
    right = np.flatnonzero(wanted & (here < end)).tolist()
    return replace(draft, places=(*draft.places, *right), start=end, next=end if len(wrong) else None)


def _vocabulary(policy: CausalPolicy) -> int:
    return int(policy.model.get_output_embeddings().weight.shape[0])


def _compared(policy: CausalPolicy, base: CausalPolicy, rows: Sequence[Row]) -> np.ndarray:
    """[4, N]: tops, ranks, entropies of the base, divergences, at the sampled tokens of the rows, row by row."""
    size = max(1, causal.MAX_LOGITS // (_TABLES * _vocabulary(policy)))
    with torch.inference_mode():
        batch = pad_rows(rows, range(len(rows)), device=policy.device)
        theirs = pad_rows(rows, range(len(rows)), device=base.device)
        hidden, base_hidden = policy.hidden(batch)[batch.loss_mask], base.hidden(theirs)[theirs.loss_mask]
        parts = [
            _columns(torch.log_softmax(policy.logits(one).float(), -1), _moved(base, other, policy.device))
            for one, other in zip(hidden.split(size), base_hidden.split(size), strict=True)
        ]
        return np.asarray(torch.cat(parts, dim=1).cpu().numpy())


def _moved(base: CausalPolicy, hidden: Tensor, device: torch.device) -> Tensor:
    return torch.log_softmax(base.logits(hidden).float(), -1).to(device)


def _columns(mine: Tensor, theirs: Tensor) -> Tensor:
    """Of the log-probabilities [N, V] of both models at some positions, in float64 where sums are taken.

    JS = (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2
    """
    tops = mine.argmax(dim=-1)
    ranks = (theirs > theirs.gather(-1, tops[:, None])).sum(dim=-1) + 1
    entropies = -torch.special.xlogy(theirs.exp(), theirs.exp()).sum(dim=-1)
    mixture = torch.logaddexp(mine, theirs) - float(np.log(2))
    parts = [torch.where(one > -torch.inf, one.exp() * (one - mixture), 0.0).sum(dim=-1) for one in (mine, theirs)]
    divergences = ((parts[0] + parts[1]) / 2).clamp(min=0.0)
    return torch.stack([tops.double(), ranks.double(), entropies.double(), divergences.double()])
