"""Something that happens in the midst of a run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from detkt.distiller import Distiller


@pytest.fixture
def at_call(monkeypatch):
    """``at_call(owner, name)``: a function ``(n, action)`` that lets *action* precede the n-th call from then on."""

    def watch(owner: type, name: str) -> Callable[[int, Callable[[], None] | None], None]:
        original = getattr(owner, name)

        def arrange(number, action):
            count = 0

            def counted(self, *arguments):
                nonlocal count
                count += 1
                if count == number:
                    action()
                return original(self, *arguments)

            monkeypatch.setattr(owner, name, counted)

        return arrange

    return watch


@pytest.fixture
def at_step(at_call):
    """``at_step(n, action)``: do *action* in the midst of the n-th step from now on."""
    return at_call(Distiller, "updates")
