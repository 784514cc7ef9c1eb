"""Symptom: a pod that was never ready, or answered nobody, and said nothing. Cause: a message between API process and
engine process that could not be decoded ended the thread or task that read it, and nothing else."""

from __future__ import annotations

import asyncio
import queue
import threading
from pathlib import Path

import msgspec
import pytest
import zmq
from support.garbled_engine import UNREADABLE, garbled_at_once, garbled_once_ready
from tandem_contract.flags import ServeFlags
from tandem_runtime.core.errors import StartupError
from tandem_runtime.engine import ipc
from tandem_runtime.engine.process import hear
from tandem_runtime.engine.process_client import ProcessEngineClient

PATIENCE_S = 30.0


async def test_an_engine_that_cannot_be_understood_is_told_before_it_is_ready() -> None:
    client = ProcessEngineClient(ServeFlags(model="m"), "pod", engine_main=garbled_at_once)
    client.start()
    try:
        with pytest.raises(StartupError, match="message of the engine process could not be taken"):
            await asyncio.wait_for(client.wait_ready(), PATIENCE_S)
    finally:
        await client.close()


async def test_an_engine_that_cannot_be_understood_any_more_ends_its_pod() -> None:
    client = ProcessEngineClient(ServeFlags(model="m"), "pod", engine_main=garbled_once_ready)
    client.start()
    try:
        await asyncio.wait_for(client.wait_ready(), PATIENCE_S)
        failed = await asyncio.wait_for(client.wait_dead(), PATIENCE_S)
        assert failed.message.startswith("a message of the engine process could not be taken: ")
    finally:
        await client.close()


def test_an_engine_that_cannot_understand_hears_of_it_in_its_inbox(tmp_path: Path) -> None:
    inbox: queue.SimpleQueue = queue.SimpleQueue()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    thread = threading.Thread(target=hear, args=(context, tmp_path, inbox))
    thread.start()
    outbound = ipc.push(context, ipc.to_engine_address(tmp_path))
    try:
        outbound.send(UNREADABLE)
        assert isinstance(inbox.get(timeout=PATIENCE_S), msgspec.DecodeError)
    finally:
        outbound.close(0)
        context.term()
        thread.join(PATIENCE_S)
