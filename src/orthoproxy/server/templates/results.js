// A click on a result, or Enter, searches by it; the new results scroll into view.
let isNew = false;
element.style.scrollMarginTop = "14px";
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-id]");
  if (!button) return;
  const { id, catalog, label } = button.dataset;
  isNew = true;
  trigger("click", { id, catalog, label });
});
document.addEventListener("new-image", () => { isNew = true; });
watch("value", () => {
  const top = element.getBoundingClientRect().top;
  if (isNew && (top < 0 || top > window.innerHeight / 2)) element.scrollIntoView();
  isNew = false;
});
