// A click on a result, or Enter on it, searches on with it; the new results come into view where they were not.
let another = false;
element.style.scrollMarginTop = "14px";
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-id]");
  if (!button) return;
  const { id, catalog, label } = button.dataset;
  another = true;
  trigger("click", { id, catalog, label });
});
document.addEventListener("another-picture", () => { another = true; });
watch("value", () => {
  const top = element.getBoundingClientRect().top;
  if (another && (top < 0 || top > window.innerHeight / 2)) element.scrollIntoView();
  another = false;
});
