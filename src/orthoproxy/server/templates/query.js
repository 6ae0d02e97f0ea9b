// The query image: chosen, dropped or pasted, sent to /uploads, and shown. Its key is the component's value.
const input = element.querySelector("input");
const shown = element.querySelector(".shown");
const problem = element.querySelector(".problem");
const caption = element.querySelector(".caption");
const drop = element.querySelector(".drop");
let preview = null;

function show() {
  const query = props.value ? JSON.parse(props.value) : null;
  const source = !query ? null : query.upload ? preview
    : `/images/${encodeURIComponent(query.id)}?catalog=${encodeURIComponent(query.catalog)}&size=320`;
  shown.hidden = !source;
  element.querySelector(".invitation").hidden = Boolean(source);
  if (source) shown.firstElementChild.src = source;
  element.querySelector(".ask").textContent = source ? "Choose another image" : "Choose an image";
  caption.hidden = !query;
  caption.textContent = !query ? "" : query.upload ? query.name : query.label || "no label";
  if (query) problem.textContent = "";
}

async function send(file) {
  if (!file) return;
  problem.textContent = "";
  drop.classList.add("busy");
  try {
    const form = new FormData();
    form.append("image", file);
    const answer = await fetch("/uploads", { method: "POST", body: form, credentials: "same-origin" });
    const body = await answer.json();
    if (!answer.ok) throw new Error(`${body.error.problem}${body.error.expected ? ` (expected ${body.error.expected})` : ""}`);
    if (preview) URL.revokeObjectURL(preview);
    preview = URL.createObjectURL(file);
    props.value = JSON.stringify({ upload: body.upload, name: file.name || "pasted image" });
    show();
    document.dispatchEvent(new Event("new-image"));
    trigger("submit");
  } catch (error) {
    problem.textContent = error instanceof TypeError ? "The server does not respond." : `${file.name}: ${error.message}`;
  } finally {
    drop.classList.remove("busy");
    input.value = "";  // the same file may be chosen again
  }
}

input.addEventListener("change", () => send(input.files[0]));
for (const name of ["dragenter", "dragover"]) {
  drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
drop.addEventListener("dragleave", (event) => {
  if (!drop.contains(event.relatedTarget)) drop.classList.remove("over");
});
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  send(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
  if (file) { event.preventDefault(); send(file); }
});
watch("value", show);
show();
