"""The sum of methods, ``a+b``: each adds its terms to the student's task losses (e.g. KTAN+KD, FT+KD)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import or_
from typing import cast

from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.knowledge import Knowledge
from detkt.methods.base import STUDENT, Heads, Method, MethodConfig, Player, Stage, Update, Watch


class Sum(Method):
    """All that its methods add; what each takes from a task loss (KD) is taken from it.

    Preparatory stages follow one another; the student's stages run side by side and are cut wherever one of the
    methods changes its stage. A stage with an ``every`` begins anew where it is cut.

    Raises:
        InputError: two methods train nets of one name, or do something every so many steps, but not as many.
    """

    def __init__(self, methods: Sequence[Method]) -> None:
        super().__init__(MethodConfig(), methods[0].student_spec, methods[0].teacher_spec)
        self.name = "+".join(method.name for method in methods)  # type: ignore[misc]  # a class's, but of this one
        self.reads_student_head = any(method.reads_student_head for method in methods)
        self.methods = cast(dict[str, Method], nn.ModuleDict({method.name: method for method in methods}))
        names = [name for method in methods for name in method.players() if name != STUDENT]
        if len(set(names)) != len(names):
            raise InputError(
                f"methods {' and '.join(self.methods)} cannot be summed: both train a net called "
                f"'{next(name for name in names if names.count(name) > 1)}'"
            )
        self._plan: dict[str, dict[str, Stage]] = {}
        self._stages = self._merge()

    def stages(self) -> Sequence[Stage]:
        return self._stages

    def players(self) -> dict[str, Player]:
        merged: dict[str, Player] = {}
        for method in self.methods.values():
            for name, player in method.players().items():
                previous = merged[name].modules if name in merged else ()
                merged[name] = Player(**{**vars(player), "modules": (*previous, *player.modules)})
        return merged

    def shares(self) -> dict[str, float]:
        return {term: share for method in self.methods.values() for term, share in method.shares().items()}

    def weights_without_use(self) -> list[str]:
        return [line for method in self.methods.values() for line in method.weights_without_use()]

    def watches(self) -> Sequence[Watch]:
        return [watch for method in self.methods.values() for watch in method.watches()]

    def views(self, student: Knowledge, teacher: Knowledge) -> dict[str, Tensor]:
        views: dict[str, Tensor] = {}
        for name, method in self.methods.items():
            for title, feature in method.views(student, teacher).items():
                # One map under one title; another map that two methods call the same is told apart by the method.
                if views.setdefault(title, feature) is not feature:
                    views[f"{title} ({name})"] = feature
        return views

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        added = Update(STUDENT, {})
        for name, part in self._plan[stage.name].items():
            for update in self.methods[name].step(part, student, teacher, heads):
                if update.player == STUDENT:
                    added += update
                else:
                    yield update
        if stage.trains_student:
            yield added

    def _merge(self) -> list[Stage]:
        stages, timelines = [], {}
        for name, method in self.methods.items():
            for stage in method.stages():
                if not stage.trains_student:
                    stages.append(self._plan_stage({name: stage}, stage.steps))
            timelines[name] = [stage for stage in method.stages() if stage.trains_student]
        position = {name: 0 for name in timelines}
        left = {name: timeline[0].steps for name, timeline in timelines.items()}
        while True:
            current = {name: timelines[name][position[name]] for name in timelines}
            finite = [steps for steps in left.values() if steps is not None]
            length = min(finite, default=None)
            stages.append(self._plan_stage(current, length))
            if length is None:
                return stages
            for name, steps in left.items():
                if steps is None:
                    continue
                left[name] = steps - length
                if left[name] == 0:
                    position[name] += 1
                    left[name] = timelines[name][position[name]].steps

    def _plan_stage(self, parts: dict[str, Stage], steps: int | None, name: str | None = None) -> Stage:
        name = name or "+".join(f"{method}.{stage.name}" for method, stage in parts.items())
        self._plan[name] = parts
        needs = reduce(or_, (stage.needs for stage in parts.values()))
        players = tuple(dict.fromkeys(player for stage in parts.values() for player in stage.players))
        rhythms = {stage.every: method for method, stage in parts.items() if stage.every > 1}
        if len(rhythms) > 1:
            (first, one), (second, other), *_ = rhythms.items()
            raise InputError(
                f"methods {one} and {other} cannot be summed: one does something every {first} steps, the other every "
                f"{second}; give them the same number"
            )
        if not rhythms:
            return Stage(name, needs, players, steps)
        between = {method: stage.turn(1) for method, stage in parts.items()}
        merged = self._plan_stage(between, steps, f"{name}, between")
        return Stage(name, needs, players, steps, next(iter(rhythms)), merged)
