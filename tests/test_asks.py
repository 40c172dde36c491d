from collections.abc import Callable

import pytest

from jobqueue_broadcast.asks import Ask, Hooks, chain


class Host:
    """Questions, and what became of them in order."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def ask(self, name: str, follow: Callable[[], Ask | None] = lambda: None) -> Ask:
        def go_on(how: object) -> Ask | None:
            self.heard.append(f"{name} {how}")
            return follow()

        return Ask(lambda: f"is {name}", go_on, go_on)

    def end(self) -> None:
        self.heard.append("end")


def test_a_host_decides_nothing_unless_it_says_so() -> None:
    hooks = Hooks()
    assert (hooks.authorize, hooks.submit, hooks.cancel) == (None, None, None)


def test_a_question_goes_on_with_the_answer_or_with_what_was_raised() -> None:
    host = Host()
    ask = host.ask("a")
    assert ask.call() == "is a"
    assert ask.answered("yes") is None
    assert ask.failed(ValueError("no")) is None
    assert host.heard == ["a yes", "a no"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_chain_ends_with_what_comes_after_all_its_questions(fails: bool) -> None:
    host = Host()

    def third() -> Ask:
        return host.ask("third")

    first = host.ask("first", lambda: host.ask("second"))
    ask: Ask | None = chain(first, lambda: chain(third(), host.end))
    while ask is not None:
        result = ask.call()
        ask = ask.failed(ValueError(result)) if fails else ask.answered(result)
    assert host.heard == ["first is first", "second is second", "third is third", "end"]
