"""How hard Hypothesis tries: a little, or much with `--hypothesis-profile=thorough`.

And what programs that tests start may rely on.
"""

import signal

import pytest
from hypothesis import HealthCheck, settings

# A shared machine pauses a test now and then: neither a deadline nor "too slow" says anything here.
_ALWAYS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

settings.register_profile("ci", _ALWAYS, max_examples=30)
settings.register_profile("thorough", _ALWAYS, max_examples=2_000)


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--hypothesis-profile"):
        settings.load_profile("ci")
    # What a shell starts in the background ignores Ctrl-C, and so do the programs it starts; tests
    # end theirs by it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
