"""Weights of a method's terms as shares of the task's gradient.

A fixed weight does not carry from one pair of networks to the next: the gradient of one and the same term is a
thirtieth of the task's on one pair and seventy times it on another, where it drowns the task. A share holds the norm
of a term's gradient to so many times that of the task losses, both taken at the student's maps, which costs a backward
pass through the heads alone. So VQGAN holds its adversary (Esser et al., CVPR 2021).

What that leaves open, and we decided: the norm is that of all the student's maps together, but for those of frozen
stages, over the cells that show picture; it is measured in one batch of :data:`EVERY`, and the ratio is a geometric
mean over the measurements with a memory of some five of them, so that one odd batch moves no weight; several processes
use the mean of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.knowledge import Knowledge
from detkt.methods.base import Update

EVERY = 10
MEMORY = 0.8
LARGEST = 1e4
"""No factor goes above it, nor below its inverse: a term without a gradient would get an endless weight."""


class Balance(nn.Module):
    """Factors on the terms of a method, measured while the student learns; its state goes with a checkpoint.

    Args:
        shares: by term, the norm of its gradient in norms of the task's.
        mean: of a tensor over all processes.
    """

    ratios: Tensor
    known: Tensor

    def __init__(self, shares: Mapping[str, float], mean: Callable[[Tensor], Tensor] = lambda values: values) -> None:
        super().__init__()
        self.shares, self._mean = dict(shares), mean
        self._names = list(self.shares)
        self._batches = 0
        self._measured: set[str] = set()  # so that no step has to ask a GPU
        self.register_buffer("ratios", torch.zeros(len(self._names)))  # logarithms, task : term
        self.register_buffer("known", torch.zeros(len(self._names), dtype=torch.bool))

    def forward(
        self,
        update: Update,
        task: Mapping[str, Tensor],
        maps: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        measure: bool,
    ) -> Update:
        """*update* with every term that has a share times its factor.

        Args:
            update: what the method adds for the student.
            task: the student's task losses.
            maps: the student's maps (N, C, H, W) that both hang on.
            masks: of each map (N, 1, H, W), 1 where it shows picture; None: everywhere.
            measure: look at the gradients of this batch, and tell of them in the update's metrics: ``NAME_share`` (what
                the term pulls now, in units of the task) and ``NAME_cosine`` (of the two gradients).
        """
        terms = [name for name in self._names if name in update.losses]
        if not terms:
            return update
        found: dict[str, tuple[Tensor, Tensor]] = {}
        if measure or (torch.is_grad_enabled() and not all(self._known(name) for name in terms)):
            found = self._measure(update, task, maps, masks, terms)
        losses, metrics = dict(update.losses), dict(update.metrics)
        for name in terms:
            factor = self._factor(name)
            losses[name] = factor * losses[name]
            if name in found:
                ratio, cosine = found[name]
                metrics[f"{name}_share"] = factor / ratio
                metrics[f"{name}_cosine"] = cosine
        return replace(update, losses=losses, metrics=metrics)

    def balance(self, update: Update, student: Knowledge) -> Update:
        """*update* of the next batch with its terms at their shares; looked at in one batch of :data:`EVERY`.

        Raises:
            InputError: none of the student's maps has a gradient, as with a frozen backbone.
        """
        learning = torch.is_grad_enabled()
        measure = learning and self._batches % EVERY == 0
        self._batches += learning
        maps = _with_gradient(student)
        if learning and not maps:
            raise InputError(
                f"{', '.join(self._names)}: no share of the task's gradient can be held at the student's maps, which "
                "have none (its backbone is frozen); leave 'balance' out, or train more of the backbone"
            )
        # Masks are made where they are looked through: most batches pass with the factors of before.
        looks = measure or (learning and not all(self._known(name) for name in self._names if name in update.losses))
        masks = [student.mask(feature) if looks else None for feature in maps]
        return self(update, student.losses, maps, masks, measure)

    def get_extra_state(self) -> Tensor:
        """How many batches there were, so that a resumed run looks at the same ones."""
        return torch.tensor(self._batches)

    def set_extra_state(self, state: Tensor) -> None:
        """The reverse of :meth:`get_extra_state`."""
        self._batches = int(state)

    def _known(self, name: str) -> bool:
        if name not in self._measured and self.known[self._names.index(name)]:
            self._measured.add(name)
        return name in self._measured

    def _factor(self, name: str) -> Tensor:
        index = self._names.index(name)
        ratio = self.ratios[index].exp()
        # A term that has had no gradient so far keeps the weight it came with.
        return torch.where(self.known[index], self.shares[name] * ratio, torch.ones_like(ratio))

    def _measure(
        self,
        update: Update,
        task: Mapping[str, Tensor],
        maps: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        terms: Sequence[str],
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Ratio of norms (task : term) and cosine of each term, by name; the running ratios move on."""
        ours = _gradient(torch.stack([loss.float() for loss in task.values()]).sum(), maps, masks)
        norm = ours.norm()
        found = {}
        for name in terms:
            theirs = _gradient(update.losses[name].float(), maps, masks)
            measured = torch.stack([norm, theirs.norm(), ours @ theirs])
            task_norm, term_norm, product = self._mean(measured)
            ratio = (task_norm / term_norm).clamp(1 / LARGEST, LARGEST)
            if not (term_norm > 0 and task_norm > 0):  # such as an adversary's in a step that is not its turn
                continue
            found[name] = ratio, product / (task_norm * term_norm).clamp_min(1e-20)
            index = self._names.index(name)
            new = ratio.log()
            old = self.ratios[index].clone()
            self.ratios[index] = torch.where(self.known[index], MEMORY * old + (1 - MEMORY) * new, new)
            self.known[index] = True
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
    task, terms = (
        _gradient(torch.stack([loss.float() for loss in losses.values()]).sum(), maps, masks).norm()
        for losses in (student.losses, update.losses)
    )
    share = torch.where(task > 0, terms / task, torch.zeros_like(task))
    return replace(update, metrics={**update.metrics, "gradient_share": share})


def _with_gradient(student: Knowledge) -> list[Tensor]:
    """The student's maps but for those of frozen stages."""
    return [feature for feature in student.features.values() if feature.requires_grad]


def _gradient(loss: Tensor, maps: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Tensor:
    """The gradient of *loss* at *maps* as one vector, over the cells of *masks*; the graph stays."""
    if not loss.requires_grad:
        return torch.cat([feature.new_zeros(feature.numel(), dtype=torch.float32) for feature in maps])
    gradients = torch.autograd.grad(loss, list(maps), retain_graph=True, allow_unused=True)
    parts = []
    for feature, gradient, mask in zip(maps, gradients, masks, strict=True):
        part = torch.zeros_like(feature) if gradient is None else gradient
        parts.append((part.float() if mask is None else part.float() * mask).flatten())
    return torch.cat(parts)
