// The API as this page calls it: JSON answers, and server-sent events line by line.

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function call(path, key, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  const answer = await fetch(path, { ...options, headers });
  if (!answer.ok) {
    const body = await answer.json().catch(() => ({}));
    throw new ApiError(answer.status, body.error?.message ?? `The gateway answered ${answer.status}.`);
  }
  return answer;
}

export async function get(path, key) {
  return (await call(path, key)).json();
}

// Yields the decoded events of a streamed completion; an error event, or an end without [DONE], is an ApiError.
export async function* stream(path, key, body, signal) {
  const headers = { "Content-Type": "application/json", "X-Tandem-Timing": "1" };
  const answer = await call(path, key, { method: "POST", headers, body: JSON.stringify(body), signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ApiError(answer.status, "The stream broke off.");
    const lines = (pending + value).split("\n");
    pending = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(answer.status, event.error.message);
      yield event;
    }
  }
}
