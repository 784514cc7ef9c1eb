// What an answer's marks mean: fenced code, `code` and **bold**. Everything else is shown as it was written.

const INLINE = /`([^`\n]+)`|\*\*([^*\n]+)\*\*/g;

function node(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function inline(text) {
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(INLINE)) {
    parts.push(text.slice(end, found.index), found[1] !== undefined ? node("code", found[1]) : node("b", found[2]));
    end = found.index + found[0].length;
  }
  return [...parts, text.slice(end)];
}

function block(code) {
  const made = document.createElement("pre");
  made.append(node("code", code));
  made.tabIndex = 0; // wide code scrolls by keyboard too
  return made;
}

// Nodes only, never HTML: what a model says is not to be trusted.
export function render(text) {
  const nodes = [];
  let code = null;
  let plain = [];
  for (const line of text.split("\n")) {
    if (/^\s*```/.test(line)) {
      if (code === null) nodes.push(...inline(plain.join("\n")));
      else nodes.push(block(code.join("\n")));
      code = code === null ? [] : null;
      plain = [];
    } else (code ?? plain).push(line);
  }
  return [...nodes, ...(code === null ? inline(plain.join("\n")) : [block(code.join("\n"))])];
}
