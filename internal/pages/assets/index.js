// Postern's one script. Every page works without it: it only adds copy
// buttons and the "/" key, which are hidden until it has loaded.
(() => {
  "use strict";

  const said = document.createElement("p");
  said.className = "vh";
  said.setAttribute("role", "status");
  document.body.append(said);

  const select = (node) => {
    const range = document.createRange();
    range.selectNodeContents(node);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
  };

  for (const button of document.querySelectorAll("button[data-copy]")) {
    const label = button.querySelector("span");
    const before = label.textContent;
    let timer;
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(button.dataset.copy);
        label.textContent = "Copied";
        said.textContent = "Copied";
        clearTimeout(timer);
        timer = setTimeout(() => { label.textContent = before; said.textContent = ""; }, 4000);
      } catch {
        // No clipboard: leave the text selected for the person to copy.
        const beside = button.parentElement.querySelector("code");
        if (beside) select(beside);
        said.textContent = "Selected. Copy it with the keyboard.";
      }
    });
  }

  const search = document.querySelector("input[type=search]");
  if (search) {
    for (const key of document.querySelectorAll("kbd[hidden]")) key.hidden = false;
    document.addEventListener("keydown", (event) => {
      if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target.closest("input, textarea, select, [contenteditable]")) return;
      event.preventDefault();
      search.focus();
    });
  }
})();
