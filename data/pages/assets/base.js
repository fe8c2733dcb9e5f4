// Shared by the pages: escaping, theme, the data block. Assets are joined into one script that a page carries.

const DATA = JSON.parse(document.getElementById("data").textContent);
const UNKNOWN = "?"; // value of a facet that is not known
const byId = (id) => document.getElementById(id);
const format = new Intl.NumberFormat("en-US");
const number = (value) => format.format(value);
const plural = (count, what) => `${number(count)} ${what}${count === 1 ? "" : "s"}`;

const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
/** Text for HTML; every string of the data passes through here. */
const esc = (text) => String(text).replace(/[&<>"']/g, (letter) => ENTITIES[letter]);

/** A link, when the address is one of the web; else the plain text. */
const link = (url, text) =>
  /^https?:\/\//i.test(url)
    ? `<a href="${esc(url)}" rel="noreferrer noopener">${esc(text || url.replace(/^https?:\/\/(www\.)?/i, "").replace(/\/$/, ""))}</a>`
    : esc(text || url);

/** Call once the page is at rest: later calls replace earlier ones. */
function settled(work, milliseconds) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, milliseconds);
  };
}

// Some browsers forbid storage to pages opened from a file: the choice then lasts as long as the page.
const remembered = {
  get(key) {
    try {
      return localStorage.getItem(`medloom-${key}`);
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(`medloom-${key}`, value);
    } catch {
      return;
    }
  },
};

function setUpTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = byId("theme");
  let chosen = remembered.get("theme");
  const apply = () => {
    const theme = chosen || (system.matches ? "dark" : "light");
    const other = theme === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    button.textContent = other[0].toUpperCase() + other.slice(1);
    button.setAttribute("aria-label", `Use ${other} colours`);
    return other;
  };
  button.addEventListener("click", () => {
    chosen = apply();
    remembered.set("theme", chosen);
    apply();
  });
  system.addEventListener("change", apply);
  apply();
}

/** Whether a key press belongs to a text field or to a command of the browser. */
function isTyping(event) {
  const field = event.target.closest("input, textarea, select");
  const text = field && !["checkbox", "radio", "range"].includes(field.type);
  return Boolean(text) || event.ctrlKey || event.metaKey || event.altKey;
}

function setUpHelp() {
  const help = byId("help");
  byId("show-help").addEventListener("click", () => help.showModal());
  help.addEventListener("click", (event) => {
    if (event.target === help || event.target.closest("button")) help.close();
  });
}

setUpTheme();
setUpHelp();
