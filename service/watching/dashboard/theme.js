// Light or dark. Not a module: it must run before the first paint, else the other colours flash.
// "auto" follows the system. The browser remembers the choice.
(() => {
  const root = document.documentElement;

  function apply(choice) {
    if (choice === "light" || choice === "dark") root.dataset.theme = choice;
    else delete root.dataset.theme;
    window.dispatchEvent(new Event("themechange"));
  }

  apply(localStorage.getItem("theme"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
    window.dispatchEvent(new Event("themechange")),
  );

  document.addEventListener("DOMContentLoaded", () => {
    const select = document.getElementById("theme");
    select.value = root.dataset.theme ?? "auto";
    select.addEventListener("change", () => {
      localStorage.setItem("theme", select.value);
      apply(select.value);
    });
  });
})();
