// The tables on the right: pods as the gateway sees them, and where this page's requests went.

import { get } from "./stream.js";

const EVERY_MS = 1000;
const KEPT_REQUESTS = 20;
const $ = (id) => document.getElementById(id);

function cell(content, className = "") {
  const made = document.createElement("td");
  made.className = className;
  made.append(content);
  return made;
}

function row(...cells) {
  const made = document.createElement("tr");
  made.append(...cells);
  return made;
}

function usage(pod) {
  if (!pod.kv_pages_total) return "–";
  const meter = document.createElement("meter");
  meter.max = pod.kv_pages_total;
  meter.high = 0.9 * pod.kv_pages_total;
  meter.value = pod.kv_pages_used;
  const box = document.createElement("span");
  box.append(meter, ` ${Math.round((100 * pod.kv_pages_used) / pod.kv_pages_total)} %`);
  box.title = `${pod.kv_pages_used} of ${pod.kv_pages_total} pages`;
  return box;
}

function showPods(pods) {
  $("pods").replaceChildren(
    ...pods.map((pod) =>
      row(
        cell(pod.name),
        cell(pod.role, pod.role),
        cell(pod.state.replace("_", " "), pod.state),
        cell(String(pod.running)),
        cell(String(pod.waiting)),
        cell(usage(pod)),
      ),
    ),
  );
}

const milliseconds = (seconds) => `${(1000 * seconds).toFixed(seconds < 0.1 ? 1 : 0)} ms`;

export function showRequest(trace, tokens) {
  const moved = `${trace.handoff_pages} ${trace.handoff_pages === 1 ? "page" : "pages"}, ${Math.round(trace.handoff_bytes / 1024)} KiB`;
  $("requests").prepend(
    row(
      cell(trace.prefill_pod ?? "at home", "prefill"),
      cell(trace.decode_pod, "decode"),
      cell(`${trace.prompt_tokens} + ${tokens?.completion_tokens ?? "?"}`),
      cell(trace.prefill_pod ? moved : "–"),
      cell(milliseconds(trace.ttft_seconds)),
      cell(milliseconds(trace.tpot_seconds)),
    ),
  );
  while ($("requests").children.length > KEPT_REQUESTS) $("requests").lastChild.remove();
}

// Calls `onNews` with what went wrong, or null, whose own failure is news too; rests while nobody looks at the page.
export async function follow(key, onNews) {
  for (;;) {
    if (!document.hidden) {
      try {
        showPods((await get("fleet.json", key())).pods);
        await onNews(null);
      } catch (error) {
        await onNews(error);
      }
    }
    await new Promise((wake) => setTimeout(wake, EVERY_MS));
  }
}
