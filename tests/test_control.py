import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast.control import (
    JobAccepted,
    PrincipalRevoked,
    decode_control,
    encode,
    is_control,
)
from jobqueue_broadcast.events import Event
from tests import strategies as some


@given(
    st.builds(JobAccepted, job_id=some.ids, owner=st.none() | some.ids, timestamp=some.timestamps)
    | st.builds(PrincipalRevoked, principal_id=some.ids, timestamp=some.timestamps)
)
def test_what_is_encoded_is_read_back(message: JobAccepted | PrincipalRevoked) -> None:
    payload = encode(message)
    assert is_control(payload)
    assert decode_control(payload) == message


@given(some.events())
def test_no_event_is_taken_for_control(event: Event) -> None:
    assert not is_control(encode(event))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b'{"type":"$unknown"}',
        b'{"type":"$job_accepted"}',
        b'{"type":"$principal_revoked","principal_id":"\xff","timestamp":1}',
        b'{"type":"heartbeat"}',
    ],
)
def test_anything_else_is_refused(payload: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_control(payload)
