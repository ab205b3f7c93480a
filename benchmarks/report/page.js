"use strict";
// Shows what matches every filter; a mark without an attribute matches any value of it.
const selects = [...document.querySelectorAll(".filters select")];
const names = selects.map((select) => select.name);
const marked = [...document.querySelectorAll("[data-device], [data-op], [data-dtype], [data-mode]")].filter(
  (element) => element.tagName !== "SELECT");

function apply() {
  for (const element of marked) {
    element.toggleAttribute("hidden", !selects.every(
      (select) => !select.value || !(select.name in element.dataset) || element.dataset[select.name] === select.value));
    // SVG elements do not know the attribute.
    if (element instanceof SVGElement) element.style.display = element.hasAttribute("hidden") ? "none" : "";
  }
  for (const group of document.querySelectorAll("[data-group]")) {
    group.toggleAttribute("hidden", !group.querySelector("[data-op]:not([hidden])"));
  }
  const set = selects.filter((select) => select.value).map((select) => `${select.name}=${encodeURIComponent(select.value)}`);
  history.replaceState(null, "", set.length ? "#" + set.join("&") : location.pathname + location.search);
}

for (const part of location.hash.slice(1).split("&")) {
  const [name, value] = part.split("=");
  if (names.includes(name)) selects[names.indexOf(name)].value = decodeURIComponent(value || "");
}
selects.forEach((select) => select.addEventListener("change", apply));
apply();
