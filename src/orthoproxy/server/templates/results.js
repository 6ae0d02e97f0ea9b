// A click on a result, or Enter, searches by it; the results of a new search scroll into view.
let isNew = false;
element.style.scrollMarginTop = "14px";
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-id]");
  if (!button) return;
  document.dispatchEvent(new CustomEvent("search", { detail: { ...button.dataset } }));
});
document.addEventListener("search", () => { isNew = true; });
watch("value", () => {
  const top = element.getBoundingClientRect().top;
  if (isNew && (top < 0 || top > window.innerHeight / 2)) element.scrollIntoView();
  isNew = false;
});
