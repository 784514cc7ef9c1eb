// Starts the page: the model's name, the key, the chat, the fleet.

import { Chat } from "./chat.js";
import { follow, showRequest } from "./fleet.js";
import { get } from "./stream.js";

const $ = (id) => document.getElementById(id);
const key = () => $("key").value.trim();

async function listModels() {
  const { data } = await get("../v1/models", key());
  const options = data.map(({ id }) => new Option(id, id));
  if ([...$("model").options].map(({ value }) => value).join() !== data.map(({ id }) => id).join()) {
    $("model").replaceChildren(...options);
  }
}

new Chat({ key, model: () => $("model").value, onTrace: showRequest });
follow(key, async (error) => {
  if (error === null) await listModels();
  $("notice").textContent =
    error === null ? "" : error.status === 401 ? "This gateway wants an API key." : `The gateway: ${error.message}`;
});
$("question").focus();
