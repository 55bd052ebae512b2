"""Weights of a method's terms as shares of the task's gradient.

A fixed weight does not carry from one pair of networks to the next: the gradient of one and the same term is a
thirtieth of the task's on one pair and seventy times it on another, where it drowns the task. A share holds the norm
of a term's gradient to so many times that of the task losses, both taken at the student's maps, which costs a backward
pass through the heads alone. So VQGAN holds its adversary (Esser et al., CVPR 2021).

What that leaves open, and we decided: the norm is that of all the student's maps together, but for those of frozen
stages, over the cells that show picture. A term is looked at in each of the first :data:`FIRST` batches in which it has
a gradient, in which a new layer can change it a hundredfold, and in one of :data:`EVERY` after them: an adversary has
its own count. The ratio is a geometric mean over the looks with a memory of some five of them, so that one odd batch
moves no weight; but a batch that is looked at pulls at most :data:`EXCESS` times its share. Parts of a batch are one
look, and several processes use the root mean square of theirs, so that the factor is that of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.knowledge import Knowledge
from detkt.methods.base import Update

FIRST = 50
EVERY = 10
MEMORY = 0.8
EXCESS = 2.0
LARGEST = 1e4
"""No factor goes above it, nor below its inverse: a term without a gradient would get an endless weight."""


class Balance(nn.Module):
    """Factors on the terms of a method, measured while the student learns; its state goes with a checkpoint.

    Args:
        shares: by term, the norm of its gradient in norms of the task's.
        mean: of a tensor over all processes.
        parts: in how many calls a batch comes.
    """

    ratios: Tensor
    known: Tensor

    def __init__(
        self,
        shares: Mapping[str, float],
        mean: Callable[[Tensor], Tensor] = lambda values: values,
        parts: int = 1,
    ) -> None:
        super().__init__()
        self.shares, self._mean, self._parts = dict(shares), mean, parts
        self._calls = dict.fromkeys(self.shares, 0)  # with a gradient of that term
        self._measured: set[str] = set()  # so that no step has to ask a GPU
        # Of the parts of the batch so far: the sums, and what was known before it.
        self._parts_so_far: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.register_buffer("ratios", torch.zeros(len(self.shares)))  # logarithms, task : term
        self.register_buffer("known", torch.zeros(len(self.shares), dtype=torch.bool))

    def forward(self, update: Update, student: Knowledge) -> Update:
        """*update* of the next batch with every term that has a share times its factor.

        A batch that is looked at tells in the update's metrics ``NAME_share`` (what the term pulls now, in units of the
        task) and ``NAME_cosine`` (of the two gradients).

        Args:
            update: what the method adds for the student.
            student: its maps, from which both the terms and the task's losses come.

        Raises:
            InputError: none of the student's maps has a gradient, as with a frozen backbone.
        """
        terms = [name for name in self.shares if name in update.losses]
        maps = _with_gradient(student)
        if torch.is_grad_enabled() and not maps:
            raise InputError(
                f"{', '.join(self.shares)}: no share of the task's gradient can be held at the student's maps, which "
                "have none (its backbone is frozen); leave 'balance' out, or train more of the backbone"
            )
        found = self._look(update, student, maps, [name for name in terms if self._is_due(name, update.losses[name])])
        losses, metrics = dict(update.losses), dict(update.metrics)
        for name in terms:
            factor = self._factor(name)
            if name in found:
                pull, cosine = found[name]
                largest = EXCESS * self.shares[name]
                factor = torch.where(factor * pull > largest, largest / pull, factor)
                metrics[f"{name}_share"], metrics[f"{name}_cosine"] = factor * pull, cosine
            losses[name] = factor * losses[name]
        return replace(update, losses=losses, metrics=metrics)

    def get_extra_state(self) -> Tensor:
        """How many calls there were with each term, so that a resumed run looks at the same ones."""
        return torch.tensor(list(self._calls.values()))

    def set_extra_state(self, state: Tensor) -> None:
        """The reverse of :meth:`get_extra_state`; checkpoints of before counted once for all terms."""
        self._calls = dict(zip(self.shares, state.expand(len(self.shares)).tolist(), strict=True))

    def _is_due(self, name: str, loss: Tensor) -> bool:
        """Whether this call looks at a term; a call in which it has no gradient, not being its turn, is not counted."""
        if not (torch.is_grad_enabled() and loss.requires_grad):
            return False
        batch = self._calls[name] // self._parts
        self._calls[name] += 1
        return batch < FIRST or batch % EVERY == 0 or not self._is_known(name)

    def _is_known(self, name: str) -> bool:
        if name not in self._measured and self.known[self._index(name)]:
            self._measured.add(name)
        return name in self._measured

    def _index(self, name: str) -> int:
        return list(self.shares).index(name)

    def _factor(self, name: str) -> Tensor:
        index = self._index(name)
        ratio = self.ratios[index].exp()
        # A term that has had no gradient so far keeps the weight it came with.
        return torch.where(self.known[index], self.shares[name] * ratio, torch.ones_like(ratio))

    def _look(
        self, update: Update, student: Knowledge, maps: Sequence[Tensor], terms: Sequence[str]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Ratio of norms (term : task) and cosine of each of *terms*, by name, 0 where one has no gradient.

        The running ratios move on.
        """
        if not terms:
            return {}
        # Masks are made where they are looked through: most batches pass with the factors of before.
        masks = [student.mask(feature) for feature in maps]
        ours = _gradient(student.losses.values(), maps, masks)
        found = {}
        for name in terms:
            theirs = _gradient([update.losses[name]], maps, masks)
            sums = self._mean(torch.stack([ours @ ours, theirs @ theirs, ours @ theirs]))
            index, (batch, part) = self._index(name), divmod(self._calls[name] - 1, self._parts)
            before, was_known = self.ratios[index].clone(), self.known[index].clone()
            if part and name in self._parts_so_far:
                earlier, before, was_known = self._parts_so_far[name]
                sums = sums + earlier
            self._parts_so_far[name] = sums, before, was_known
            task, term = sums[0].sqrt(), sums[1].sqrt()
            both = (task > 0) & (term > 0)
            pull = (term / task).clamp(1 / LARGEST, LARGEST)
            found[name] = pull.where(both, 0), (sums[2] / (task * term)).where(both, 0)
            weight = max(1 - MEMORY, 1 / (batch + 1))
            ratio = torch.where(was_known, (1 - weight) * before - weight * pull.log(), -pull.log())
            self.ratios[index] = ratio.where(both, before)
            self.known[index] = was_known | both
        return found


def gradient_share(update: Update, student: Knowledge) -> Update:
    """*update* with the metric ``gradient_share``: the norm of the gradient of all its terms together at the student's
    maps, over that of the task's; as it is where one of both has no gradient there.

    Nothing else is changed: the gradients of the step are computed anew.
    """
    maps = _with_gradient(student)
    if not maps or not update.losses:
        return update
    masks = [student.mask(feature) for feature in maps]
    task, terms = (_gradient(losses.values(), maps, masks).norm() for losses in (student.losses, update.losses))
    share = torch.where(task > 0, terms / task, torch.zeros_like(task))
    return replace(update, metrics={**update.metrics, "gradient_share": share})


def _with_gradient(student: Knowledge) -> list[Tensor]:
    """The student's maps but for those of frozen stages."""
    return [feature for feature in student.features.values() if feature.requires_grad]


def _gradient(losses: Iterable[Tensor], maps: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Tensor:
    """The gradient of the sum of *losses* at *maps* as one vector, over the cells of *masks*; the graph stays."""
    loss = torch.stack([part.float() for part in losses]).sum()
    if not loss.requires_grad:
        return torch.cat([feature.new_zeros(feature.numel(), dtype=torch.float32) for feature in maps])
    gradients = torch.autograd.grad(loss, list(maps), retain_graph=True, allow_unused=True)
    parts = []
    for feature, gradient, mask in zip(maps, gradients, masks, strict=True):
        part = torch.zeros_like(feature) if gradient is None else gradient
        parts.append((part.float() if mask is None else part.float() * mask).flatten())
    return torch.cat(parts)
