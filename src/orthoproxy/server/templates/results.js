// A click on a result, or Enter, searches by it; the results of a new search scroll into view.
let isNew = false;
element.style.scrollMarginTop = "14px";
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-id]");
  if (!button) return;
  const { id, catalog, label } = button.dataset;
  document.dispatchEvent(new CustomEvent("search", { detail: { id, catalog, label } }));
});
document.addEventListener("search", () => { isNew = true; });
watch("value", () => {
  const top = element.getBoundingClientRect().top;
  if (isNew && (top < 0 || top > window.innerHeight / 2)) element.scrollIntoView();
  isNew = false;
});
