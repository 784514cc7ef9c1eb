"""The page at /ui: who may read what, and what a browser may do with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from aiohttp import web
from gateway.fake_engine import FakeEngine
from gateway.harness import gateway_before
from playwright.async_api import expect
from support.browser import browser_page


async def test_the_page_and_all_that_it_names(tmp_path: Path) -> None:
    """Without a key: the page then asks for one. Everything it loads is here, and it may load nothing else."""
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    async with FakeEngine() as engine, gateway_before(engine, api_key_file=str(keys)) as client:
        page = await client.get("/ui/")
        assert page.status == 200
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        names = set(re.findall(r'(?:href|src)="([^"]+)"', page.body.decode()))
        scripts = [name for name in names if name.endswith(".js")]
        for script in scripts:
            body = (await client.get(f"/ui/{script}")).body.decode()
            imported = re.findall(r'from "\./([^"]+)"', body)
            scripts += [name for name in imported if name not in scripts]
        assert {"main.js", "chat.js", "fleet.js", "markup.js", "stream.js"} == set(scripts)
        for name in names | set(scripts):
            found = await client.get(f"/ui/{name}")
            assert found.status == 200, name
            assert "default-src 'none'" in found.headers["Content-Security-Policy"]
            assert "unsafe" not in found.headers["Content-Security-Policy"]
            assert found.headers["X-Content-Type-Options"] == "nosniff"
            # Nothing that the policy would forbid: foreign hosts, inline code, inline style.
            text = found.body.decode()
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
            assert not re.search(r"<script>|\son\w+=|\sstyle=|innerHTML|eval\(", text), name


async def test_slash_is_added_below_any_path() -> None:
    async with FakeEngine() as engine, gateway_before(engine) as client:
        answer = await client.get("/ui", allow_redirects=False)
        assert (answer.status, answer.headers["Location"]) == (308, "ui/")


@pytest.mark.parametrize("path", ["/ui/../flags.py", "/ui/%2e%2e/routes.py", "/ui/routes.py", "/ui/static/main.js"])
async def test_no_other_file_is_served(path: str) -> None:
    async with FakeEngine() as engine, gateway_before(engine) as client:
        assert (await client.get(path)).status == 404


async def test_the_fleet_wants_the_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    async with FakeEngine() as engine, gateway_before(engine, api_key_file=str(keys)) as client:
        assert (await client.get("/ui/fleet.json")).status == 401
        answer = await client.get("/ui/fleet.json", headers={"Authorization": "Bearer secret"})
        assert answer.status == 200
        (pod,) = json.loads(answer.body)["pods"]
        assert pod["role"] == engine.status.role
        assert pod["state"] == "ready"
        assert pod["kv_pages_total"] == engine.status.kv_pages_total


async def test_off_by_a_flag() -> None:
    async with FakeEngine() as engine, gateway_before(engine, ui=False) as client:
        for path in ("/ui", "/ui/", "/ui/main.js", "/ui/fleet.json"):
            assert (await client.get(path)).status == 404


async def test_thoughts_are_folded_and_not_sent_again() -> None:
    deltas = [{"role": "assistant"}, {"reasoning_content": "Rome? "}, {"reasoning_content": "No."}, {"content": "Par"}]
    events = [{"choices": [{"index": 0, "delta": delta}]} for delta in [*deltas, {"content": "is."}]]
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": {"completion_tokens": 5}}
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in [*events, last]) + "data: [DONE]\n\n"
    async with FakeEngine() as engine, gateway_before(engine) as client, browser_page() as (page, wrong):
        engine.answer = web.Response(text=body, content_type="text/event-stream")
        await page.goto(client.url + "/ui")
        await expect(page.locator("#model option")).to_have_count(1)
        for count in (1, 2):
            await page.fill("#question", "Capital of France?")
            await page.press("#question", "Enter")
            answer = page.locator("article.assistant").nth(count - 1)
            await expect(answer.locator("footer")).to_have_text("5 tokens")
            await expect(answer.locator("details summary")).to_have_text("Thoughts")
            await expect(answer.locator("details .reasoning")).to_have_text("Rome? No.")
            await expect(answer.locator("details .reasoning")).to_be_hidden()
            await expect(answer.locator(".text")).to_have_text("Paris.")
        sent = json.loads(engine.seen[-1].body)["messages"]
        assert [message["content"] for message in sent] == ["Capital of France?", "Paris.", "Capital of France?"]
        assert wrong == []


async def test_models_that_cannot_be_listed_are_news_and_no_unhandled_rejection() -> None:
    """The page went on as if nothing were wrong, with an error in the console every second."""
    async with FakeEngine() as engine, gateway_before(engine) as client, browser_page() as (page, wrong):
        await page.route("**/v1/models", lambda route: route.fulfill(status=500, json={"error": {"message": "no"}}))
        await page.goto(client.url + "/ui")
        await expect(page.locator("#notice")).to_have_text("The gateway: no")
        await page.unroute("**/v1/models")
        await expect(page.locator("#notice")).to_be_empty()
        await expect(page.locator("#model option")).to_have_count(1)
        assert all(line.startswith("Failed to load resource") for line in wrong), wrong
