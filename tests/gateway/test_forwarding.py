"""Which headers go on."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from tandem_contract import headers
from tandem_gateway import forwarding


@pytest.mark.parametrize(
    "connection", [["close, X-One ,x-two"], ["close", "X-One", "x-TWO"], ["x-one,close", ",x-two"], ["X-Two", "X-One"]]
)
def test_every_connection_header_names_what_is_of_this_hop(connection: list[str]) -> None:
    """Only the first was read, so that what the others named went on (RFC 9110, section 7.6.1)."""
    given = CIMultiDictProxy(
        CIMultiDict([*(("Connection", line) for line in connection), ("X-One", "1"), ("X-Two", "2"), ("X-Three", "3")])
    )
    assert dict(forwarding.to_client(given, pods="p")) == {"X-Three": "3", headers.PODS: "p"}
    to_pod = forwarding.to_pod(given, request_id="r", tickets=(), stream={}, trace={})
    assert dict(to_pod) == {"X-Three": "3", headers.REQUEST_ID: "r"}


def test_a_connection_header_cannot_take_our_own_away() -> None:
    given = CIMultiDictProxy(CIMultiDict({"Connection": headers.REQUEST_ID, headers.TIMING: "1"}))
    sent = forwarding.to_pod(given, request_id="r", tickets=["t"], stream={}, trace={})
    assert dict(sent) == {headers.TIMING: "1", headers.REQUEST_ID: "r", headers.TICKET: "t"}
