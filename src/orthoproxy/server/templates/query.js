// The query: an image chosen, dropped or pasted and sent to /uploads, or a result. It is the component's value, and each
// is an entry of the history, a result also a link.
const input = element.querySelector("input");
const shown = element.querySelector(".shown");
const problem = element.querySelector(".problem");
const caption = element.querySelector(".caption");
const invitation = element.querySelector(".invitation");
const drop = element.querySelector(".drop");
const previews = {};  // of uploads

function fromAddress() {
  const link = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  return history.state?.query ?? (link.id ? JSON.stringify(link) : "");
}

function search(query) {
  const link = query.id ? `#${new URLSearchParams(query)}` : location.pathname;
  history.pushState({ query: JSON.stringify(query) }, "", link);
  restore();
}

function restore() {
  props.value = fromAddress();
  show();
  trigger("submit");
}

function show() {
  const query = props.value ? JSON.parse(props.value) : null;
  const source = !query ? null : query.upload ? previews[query.upload]
    : `../images/${encodeURIComponent(query.id)}?catalog=${encodeURIComponent(query.catalog)}&size=320`;
  shown.hidden = !source;
  invitation.hidden = Boolean(source);
  if (source) shown.firstElementChild.src = source;
  element.querySelector(".ask").textContent = source ? "Choose another image" : "Choose an image";
  caption.hidden = !query;
  caption.textContent = !query ? "" : query.upload ? query.name : query.label || "no label";
  problem.textContent = "";
}

async function send(file) {
  if (!file) return;
  problem.textContent = "";
  drop.classList.add("busy");
  try {
    const form = new FormData();
    form.append("image", file);
    const answer = await fetch("../uploads", { method: "POST", body: form, credentials: "same-origin" });
    const body = await answer.json();
    if (!answer.ok) throw new Error(`${body.error.problem}${body.error.expected ? ` (expected ${body.error.expected})` : ""}`);
    previews[body.upload] = URL.createObjectURL(file);
    document.dispatchEvent(new CustomEvent("search", { detail: { upload: body.upload, name: file.name || "pasted image" } }));
  } catch (error) {
    problem.textContent = error instanceof TypeError ? "The server does not respond." : `${file.name}: ${error.message}`;
  } finally {
    drop.classList.remove("busy");
    input.value = "";  // the same file may be chosen again
  }
}

input.addEventListener("change", () => send(input.files[0]));
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {  // anywhere: beside the box, a browser would open the file
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop") send(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
  if (file) { event.preventDefault(); send(file); }
});
shown.firstElementChild.addEventListener("error", () => { shown.hidden = true; invitation.hidden = false; });
document.addEventListener("search", (event) => search(event.detail));
window.addEventListener("popstate", restore);
if (fromAddress()) restore();
