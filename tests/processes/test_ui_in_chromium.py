"""The page at /ui as a person uses it: real browser, gateway, prefill and decode pods."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import FloatRect, Page, Route, expect
from support.browser import browser_page
from support.qwen3_model import build_tiny_qwen3
from support.serving import Fleet, Process
from support.tiny_models import build_tiny_model

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]
PATIENCE_MS = 60_000
KEY = "a-key-of-this-test"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    folder = build_tiny_qwen3(tmp_path_factory.mktemp("qwen3"))
    with Fleet(folder, tmp_path_factory.mktemp("fleet")) as fleet:
        prefill, decode = fleet.pod("prefill"), fleet.pod("decode")
        prefill.wait_ready()
        decode.wait_ready()
        process = fleet.gateway([decode], [prefill], api_key_file=str(keys))
        process.wait_ready()
        yield process


async def let_in(page: Page, gateway: Process) -> None:
    await page.goto(f"{gateway.url}/ui/")
    await page.fill("#key", KEY)
    await expect(page.locator("#model option")).to_have_count(1, timeout=PATIENCE_MS)


async def test_a_chat_and_the_fleet(gateway: Process) -> None:
    async with browser_page() as (page, wrong):
        await page.goto(f"{gateway.url}/ui")
        await expect(page.locator("#notice")).to_have_text("This gateway wants an API key.", timeout=PATIENCE_MS)
        await page.fill("#key", KEY)
        await expect(page.locator("#notice")).to_be_empty(timeout=PATIENCE_MS)
        await expect(page.locator("#pods tr")).to_have_count(2)
        await expect(page.locator("#pods td.prefill")).to_have_text("prefill")
        await expect(page.locator("#pods td.ready")).to_have_count(2)
        await expect(page.locator("#model option")).to_have_count(1)

        question = "How many roads must a man walk down, and why does nobody ever count them properly?"
        await page.fill("#max-tokens", "24")
        for count in (1, 2):
            await page.fill("#question", question)
            await page.press("#question", "Enter")
            answer = page.locator("article.assistant").nth(count - 1)
            await expect(answer.locator("footer")).to_have_text("24 tokens, cut off at the limit", timeout=PATIENCE_MS)
            assert await answer.locator(".text").text_content()
            await page.uncheck("#thinking")
        await expect(page.locator("article.user")).to_have_text([question, question])

        latest = page.locator("#requests tr").first
        await expect(page.locator("#requests tr")).to_have_count(2)
        await expect(latest.locator("td.prefill")).to_contain_text("prefill")
        await expect(latest.locator("td.decode")).to_contain_text("decode")
        await expect(latest.locator("td").nth(4)).to_have_text(re.compile(r"[\d.]+ ms"))
        # The one error is the 401 before the key was there.
        assert all("401" in line for line in wrong), wrong


async def test_an_answer_is_stopped_and_its_work_with_it(gateway: Process) -> None:
    async with browser_page() as (page, _):
        await let_in(page, gateway)
        await page.fill("#max-tokens", "6000")
        await page.fill("#question", "Tell me everything.")
        await page.press("#question", "Enter")
        await expect(page.locator("article.assistant .text")).not_to_be_empty(timeout=PATIENCE_MS)
        await page.press("#question", "Escape")
        await expect(page.locator("article.assistant footer")).to_have_text("Stopped.")
        await expect(page.locator("#send")).to_be_visible()
        running = page.locator("#pods tr td:nth-child(4)")
        await expect(running.nth(0)).to_have_text("0", timeout=PATIENCE_MS)
        await expect(running.nth(1)).to_have_text("0", timeout=PATIENCE_MS)


async def test_what_a_model_says_is_text(gateway: Process) -> None:
    """A question of markup is shown, not run; so are refusals."""
    async with browser_page() as (page, _):
        await let_in(page, gateway)
        await page.fill("#max-tokens", "0")
        await page.fill("#question", "<img src=x onerror=alert(1)>")
        await page.press("#question", "Shift+Enter")
        await page.press("#question", "Enter")
        await expect(page.locator("article.user")).to_have_text("<img src=x onerror=alert(1)>")
        await expect(page.locator("article.user img")).to_have_count(0)
        await expect(page.locator("article.assistant footer.error")).to_contain_text("max_tokens", timeout=PATIENCE_MS)


async def test_a_refused_question_can_be_asked_again(gateway: Process) -> None:
    async with browser_page() as (page, _):
        await let_in(page, gateway)
        await page.fill("#max-tokens", "0")
        await page.fill("#question", "What?")
        await page.press("#question", "Enter")
        await expect(page.locator("article.assistant footer.error")).to_contain_text("max_tokens", timeout=PATIENCE_MS)
        await expect(page.locator("#question")).to_have_value("What?")
        await page.fill("#max-tokens", "3")
        await page.press("#question", "Enter")
        answered = page.locator("article.assistant footer").nth(1)
        await expect(answered).to_contain_text("3 tokens", timeout=PATIENCE_MS)


SAID = "Run **this**:\n```sh\necho '<b>hi</b>' # " + "long " * 60 + "\n```\nthen `ls`, or <img src=x>."


async def test_marks_of_an_answer(gateway: Process) -> None:
    """Code is code, markup stays text; what is wide scrolls within itself, on any screen, in either colours."""

    async def answer(route: Route) -> None:
        delta = json.dumps({"choices": [{"index": 0, "delta": {"content": SAID}, "finish_reason": "stop"}]})
        await route.fulfill(content_type="text/event-stream", body=f"data: {delta}\n\ndata: [DONE]\n\n")

    async with browser_page() as (page, _):
        await page.route("**/v1/chat/completions", answer)
        await page.goto(f"{gateway.url}/ui/")
        await page.fill("#key", KEY)
        await expect(page.locator("#pods tr")).to_have_count(2, timeout=PATIENCE_MS)
        await page.fill("#question", "x" * 500)
        await page.press("#question", "Enter")
        text = page.locator("article.assistant .text")
        await expect(text.locator("pre code")).to_contain_text("echo '<b>hi</b>'")
        await expect(text.locator("b")).to_have_text(["this"])
        await expect(text.locator("code").nth(1)).to_have_text("ls")
        await expect(text.locator("img")).to_have_count(0)
        backgrounds = set()
        for scheme, width, apart in (("light", 1280, True), ("dark", 1280, True), ("dark", 390, False)):
            await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            await page.set_viewport_size({"width": width, "height": 800})
            assert await page.evaluate("document.documentElement.scrollWidth") == width, (
                "the page itself does not scroll"
            )
            chat, fleet = await box(page, "#chat"), await box(page, "#fleet")
            assert (fleet["x"] >= chat["x"] + chat["width"]) is apart
            assert (fleet["y"] >= chat["y"] + chat["height"]) is not apart
            send = await box(page, "#send")
            assert send["x"] + send["width"] <= width
            pods = await box(page, "#pods")
            assert pods["x"] + pods["width"] <= width
            backgrounds.add(
                await page.evaluate("getComputedStyle(document.querySelector('article.user')).backgroundColor")
            )
        assert len(backgrounds) == 2


async def box(page: Page, selector: str) -> FloatRect:
    found = await page.locator(selector).bounding_box()
    assert found is not None
    return found


async def test_a_model_without_thinking_answers_a_page_left_as_it_is(tmp_path: Path) -> None:
    """The page opens with thinking ticked; a template that has none refuses to be asked for it."""
    with Fleet(build_tiny_model(tmp_path / "model", "llama"), tmp_path) as fleet:
        both = fleet.pod("both")
        both.wait_ready()
        process = fleet.gateway([both], [])
        process.wait_ready()
        async with browser_page() as (page, _):
            await page.goto(f"{process.url}/ui/")
            await expect(page.locator("#model option")).to_have_count(1, timeout=PATIENCE_MS)
            await page.fill("#max-tokens", "8")
            await page.fill("#question", "What?")
            await page.press("#question", "Enter")
            footer = page.locator("article.assistant footer")
            await expect(footer).to_contain_text("tokens", timeout=PATIENCE_MS)
