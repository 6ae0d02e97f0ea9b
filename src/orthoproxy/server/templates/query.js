// The query: an image chosen, dropped or pasted and sent to /uploads, or a result; or a part of it, marked by dragging.
// It is the component's value, and each is an entry of the history, a result also a link.
const input = element.querySelector("input");
const shown = element.querySelector(".shown");
const problem = element.querySelector(".problem");
const caption = element.querySelector(".caption");
const invitation = element.querySelector(".invitation");
const drop = element.querySelector(".drop");
const picture = shown.querySelector("img");
const part = shown.querySelector(".part");
const files = {};  // uploaded
const size = () => [picture.naturalWidth, picture.naturalHeight];
let corner = null;  // where dragging began

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
  const source = !query ? null : query.upload ? files[query.upload] && URL.createObjectURL(files[query.upload])
    : `../images/${encodeURIComponent(query.id)}?catalog=${encodeURIComponent(query.catalog)}`;
  shown.hidden = !source;
  part.hidden = true;  // until the picture is loaded
  invitation.hidden = Boolean(source);
  if (source) {
    URL.revokeObjectURL(picture.src);
    picture.src = source;
  }
  element.querySelector(".ask").textContent = source ? "Choose another image" : "Choose an image";
  caption.hidden = !query;
  caption.textContent = !query ? "" : query.upload ? query.name : query.label || "no label";
  problem.textContent = "";
}

function outline(box) {  // by default that of the query
  const query = JSON.parse(props.value || "{}");
  box ??= (query.box ?? query.own)?.split(",");
  part.hidden = !box;
  if (!box) return;
  const [left, top, width, height] = box.map((pixels, axis) => `${100 * pixels / size()[axis % 2]}%`);
  Object.assign(part.style, { left, top, width, height });
}

function point(event) {
  const shares = [event.offsetX / picture.clientWidth, event.offsetY / picture.clientHeight];
  return shares.map((share, axis) => Math.round(Math.min(Math.max(share, 0), 1) * size()[axis]));
}

function marked(event) {
  const [x, y] = point(event);
  return [Math.min(x, corner[0]), Math.min(y, corner[1]), Math.abs(x - corner[0]), Math.abs(y - corner[1])];
}

function searchPart(event) {
  if (!corner) return;
  const query = JSON.parse(props.value), [left, top, width, height] = marked(event), box = [left, top, width, height].join(",");
  corner = null;
  if (Math.min(width, height) * picture.clientWidth < 4 * picture.naturalWidth) outline();  // a click
  else if (query.upload) send(files[query.upload], box);
  else document.dispatchEvent(new CustomEvent("search", { detail: { ...query, box } }));
}

async function send(file, box) {
  if (!file) return;
  problem.textContent = "";
  drop.classList.add("busy");
  try {
    const form = new FormData();
    form.append("image", file);
    if (box) form.append("box", box);
    const answer = await fetch("../uploads", { method: "POST", body: form, credentials: "same-origin" });
    const body = await answer.json();
    if (!answer.ok) throw new Error(`${body.error.problem}${body.error.expected ? ` (expected ${body.error.expected})` : ""}`);
    files[body.upload] = file;
    const detail = { upload: body.upload, name: file.name || "pasted image", ...(box && { box }) };
    document.dispatchEvent(new CustomEvent("search", { detail }));
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
picture.addEventListener("error", () => { shown.hidden = true; invitation.hidden = false; });
picture.addEventListener("load", () => {
  shown.style.setProperty("--ratio", picture.naturalWidth / picture.naturalHeight);
  outline();
});
picture.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  corner = point(event);
  picture.setPointerCapture(event.pointerId);
});
picture.addEventListener("pointermove", (event) => { if (corner) outline(marked(event)); });
picture.addEventListener("pointerup", searchPart);
picture.addEventListener("pointercancel", () => { corner = null; outline(); });
document.addEventListener("search", (event) => search(event.detail));
window.addEventListener("popstate", restore);
if (fromAddress()) restore();
