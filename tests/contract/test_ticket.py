"""Tickets: only a holder of the key can make one, and each is honoured once."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_contract.ticket import (
    MESSAGE_TTL_S,
    MIN_KEY_BYTES,
    NonceLedger,
    Ticket,
    TicketError,
    new_nonce,
    parse_keys,
    sign,
    sign_message,
    verify,
    verify_message,
)

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
NOW = 1_000_000.0
TICKET = Ticket(
    request_id="r",
    prefill_host="10.0.0.1",
    prefill_port=8100,
    prefill_incarnation="i",
    nonce="n",
    expires_at=NOW + 120,
)
TICKETS = st.builds(
    replace,
    st.just(TICKET),
    request_id=st.text(max_size=50),
    prefill_host=st.text(max_size=50),
    prefill_port=st.integers(1, 65535),
    nonce=st.text(max_size=50),
    expires_at=st.floats(NOW + 1, NOW + 1e6),
)


@given(TICKETS, st.binary(min_size=MIN_KEY_BYTES, max_size=64))
def test_what_was_signed_is_what_is_verified(ticket: Ticket, key: bytes) -> None:
    assert verify(sign(ticket, key), [key], now=NOW) == ticket


@given(st.data())
def test_any_changed_character_is_refused(data: st.DataObject) -> None:
    text = sign(TICKET, KEY)
    place = data.draw(st.integers(0, len(text) - 1))
    char = data.draw(st.characters(codec="ascii").filter(lambda char: char != text[place]))
    with pytest.raises(TicketError):
        verify(text[:place] + char + text[place + 1 :], [KEY], now=NOW)


@given(st.text())
def test_arbitrary_text_is_refused(text: str) -> None:
    with pytest.raises(TicketError):
        verify(text, [KEY], now=NOW)


def test_a_ticket_of_another_key_is_refused_and_the_error_shows_no_key() -> None:
    with pytest.raises(TicketError) as refused:
        verify(sign(TICKET, OTHER_KEY), [KEY], now=NOW)
    assert KEY.decode() not in str(refused.value)


def test_keys_rotate_without_a_gap() -> None:
    """Verifiers learn the new key first; then the signers use it; then the old one goes."""
    assert verify(sign(TICKET, KEY), [KEY, OTHER_KEY], now=NOW) == TICKET
    assert verify(sign(TICKET, OTHER_KEY), [KEY, OTHER_KEY], now=NOW) == TICKET
    with pytest.raises(TicketError):
        verify(sign(TICKET, KEY), [OTHER_KEY], now=NOW)


def test_a_ticket_expires_to_the_second() -> None:
    text = sign(TICKET, KEY)
    assert verify(text, [KEY], now=NOW + 119.9) == TICKET
    with pytest.raises(TicketError, match="expired"):
        verify(text, [KEY], now=NOW + 120)


def test_a_ticket_is_honoured_once() -> None:
    ledger = NonceLedger()
    ledger.spend(TICKET, now=NOW)
    with pytest.raises(TicketError, match="already used"):
        ledger.spend(TICKET, now=NOW + 1)
    ledger.spend(replace(TICKET, nonce=new_nonce()), now=NOW)


def test_a_full_ledger_forgets_the_expired_and_refuses_rather_than_forget_the_valid() -> None:
    ledger = NonceLedger(max_entries=2)
    ledger.spend(replace(TICKET, nonce="short", expires_at=NOW + 1), now=NOW)
    ledger.spend(replace(TICKET, nonce="long"), now=NOW)
    with pytest.raises(TicketError, match="too many"):
        ledger.spend(replace(TICKET, nonce="third"), now=NOW)
    ledger.spend(replace(TICKET, nonce="third"), now=NOW + 2)
    with pytest.raises(TicketError, match="already used"):
        ledger.spend(replace(TICKET, nonce="long"), now=NOW + 2)


def test_key_files() -> None:
    assert parse_keys(f"\n {KEY.decode()} \n{OTHER_KEY.decode()}\n") == (KEY, OTHER_KEY)
    with pytest.raises(ValueError, match="no ticket key"):
        parse_keys("\n")
    with pytest.raises(ValueError, match="needs at least 16"):
        parse_keys("short")
    with pytest.raises(ValueError, match="needs at least 16"):
        sign(TICKET, b"short")


def test_an_ipv6_prefill_pod_has_a_bracketed_url() -> None:
    assert replace(TICKET, prefill_host="fd00::1").prefill_url == "http://[fd00::1]:8100"


BODY = b'{"job_id":"j"}'


def test_a_signed_message_verifies_with_any_of_the_keys() -> None:
    signature = sign_message("/path", BODY, b"k" * 16, now=NOW)
    verify_message(signature, "/path", BODY, [b"other" * 4, b"k" * 16], now=NOW + MESSAGE_TTL_S)


@pytest.mark.parametrize(
    ("path", "body", "key", "now"),
    [
        ("/other", BODY, b"k" * 16, NOW),
        ("/path", BODY + b" ", b"k" * 16, NOW),
        ("/path", BODY, b"x" * 16, NOW),
        ("/path", BODY, b"k" * 16, NOW + MESSAGE_TTL_S + 1),
        ("/path", BODY, b"k" * 16, NOW - MESSAGE_TTL_S - 1),
    ],
)
def test_a_message_is_refused_for_another_path_body_key_or_time(path: str, body: bytes, key: bytes, now: float) -> None:
    signature = sign_message("/path", BODY, b"k" * 16, now=NOW)
    with pytest.raises(TicketError):
        verify_message(signature, path, body, [key], now=now)


@pytest.mark.parametrize("signature", ["", ".", "1", "x.y", "1.é", "9" * 400 + ".AAAA"])
def test_nonsense_is_no_signature(signature: str) -> None:
    with pytest.raises(TicketError):
        verify_message(signature, "/path", BODY, [b"k" * 16], now=NOW)
