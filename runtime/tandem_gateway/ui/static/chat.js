// The conversation: its messages, the form below it, and one answer at a time.

import { render } from "./markup.js";
import { stream } from "./stream.js";

const $ = (id) => document.getElementById(id);

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// One answer on the page: thinking folded above the text, the request's way below it.
class Answer {
  constructor(parent) {
    this.root = element("article", "assistant");
    this.thought = element("details", "thought");
    this.summary = element("summary", "", "Thinking…");
    this.reasoning = element("div", "reasoning");
    this.thought.append(this.summary, this.reasoning);
    this.text = element("div", "text");
    this.footer = element("footer", "");
    this.root.append(this.text, this.footer);
    parent.append(this.root);
  }

  add(delta) {
    if (delta.reasoning_content) {
      if (!this.thought.isConnected) this.root.prepend(this.thought);
      this.reasoning.append(delta.reasoning_content);
    }
    if (delta.content) {
      this.summary.textContent = "Thoughts";
      this.text.append(delta.content);
    }
  }

  end(note, failed = false) {
    this.text.replaceChildren(...render(this.text.textContent));
    this.summary.textContent = "Thoughts";
    this.footer.textContent = note;
    this.footer.classList.toggle("error", failed);
  }
}

export class Chat {
  constructor({ key, model, onTrace }) {
    this.key = key;
    this.model = model;
    this.onTrace = onTrace;
    this.messages = [];
    this.running = null;
    $("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    $("question").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.running?.abort();
    });
    $("stop").addEventListener("click", () => this.running?.abort());
    $("clear").addEventListener("click", () => {
      this.running?.abort();
      this.messages = [];
      $("messages").replaceChildren();
      $("question").focus();
    });
  }

  async send() {
    const question = $("question").value.trim();
    if (!question || this.running) return;
    const messages = this.messages;
    messages.push({ role: "user", content: question });
    $("question").value = "";
    $("messages").append(element("article", "user", question));
    const answer = new Answer($("messages"));
    answer.root.scrollIntoView({ block: "end" });
    this.setRunning(new AbortController());
    const said = await this.read(answer, messages, this.running.signal);
    // Only what was said is part of the conversation: the thinking is not sent again.
    if (said) messages.push({ role: "assistant", content: said });
    else {
      messages.pop();
      // It can be asked again once what was wrong is mended.
      if (!$("question").value) $("question").value = question;
    }
    this.setRunning(null);
  }

  // Returns the answer's text, however far it came.
  async read(answer, messages, signal) {
    const body = {
      model: this.model(),
      messages,
      temperature: Number($("temperature").value),
      max_tokens: Number($("max-tokens").value),
      // A template without thinking refuses to be told to think; one that has it thinks unless told not to.
      ...($("thinking").checked ? {} : { enable_thinking: false }),
      stream: true,
      stream_options: { include_usage: true },
    };
    let said = "";
    let usage = null;
    let reason = null;
    try {
      for await (const event of stream("../v1/chat/completions", this.key(), body, signal)) {
        const choice = event.choices?.[0];
        if (choice) {
          answer.add(choice.delta);
          said += choice.delta.content ?? "";
          reason = choice.finish_reason ?? reason;
        }
        usage = event.usage ?? usage;
        if (event.tandem) this.onTrace(event.tandem, usage);
        const list = $("messages");
        if (list.scrollHeight - list.scrollTop - list.clientHeight < 120) list.scrollTop = list.scrollHeight;
      }
      const tokens = usage ? `${usage.completion_tokens} tokens` : "";
      answer.end(reason === "length" ? `${tokens}, cut off at the limit` : tokens);
    } catch (error) {
      answer.end(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
    }
    return said;
  }

  setRunning(controller) {
    this.running = controller;
    $("send").hidden = controller !== null;
    $("stop").hidden = controller === null;
  }
}
