// A click on a result, or Enter on it, searches on with it.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-id]");
  if (!button) return;
  const { id, catalog, label } = button.dataset;
  trigger("click", { id, catalog, label });
});
