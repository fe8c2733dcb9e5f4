// The list of what was found and the facets beside it. Rows are made as the reader scrolls: the cost of a
// change is that of the first screen, whatever the number of rows.

const FIRST = 26; // rows of a change: a screen
const NEXT = 60;
const SHORT = 8; // values of a facet before "more"

class ResultList {
  constructor(index) {
    this.index = index;
    this.body = byId("rows");
    this.more = byId("more");
    this.found = [];
    this.shown = 0;
    new IntersectionObserver((seen) => this.near(seen.at(-1).isIntersecting), { rootMargin: "1200px" }).observe(this.more);
    this.more.addEventListener("click", () => this.extend());
  }

  show(found, words) {
    this.found = found;
    const parts = words.map((word) => `\\b${word}`).sort((a, b) => b.length - a.length);
    this.pattern = parts.length ? new RegExp(`(${parts.join("|")})`, "i") : null;
    this.shown = 0;
    this.body.textContent = "";
    this.extend();
  }

  /** The end of the list is near, or no longer: more rows when the page has nothing else to do. */
  near(isNear) {
    const later = window.requestIdleCallback || ((work) => setTimeout(work, 50));
    if (isNear) later(() => this.extend());
  }

  extend() {
    if (this.shown >= this.found.length && this.shown) return;
    const next = this.found.slice(this.shown, this.shown + (this.shown ? NEXT : FIRST));
    this.body.insertAdjacentHTML("beforeend", next.map((row) => this.row(row)).join(""));
    this.shown += next.length;
    const left = this.found.length - this.shown;
    this.more.hidden = left <= 0;
    this.more.textContent = `${plural(left, "more dataset")}`;
  }

  name(text) {
    if (!this.pattern) return esc(text);
    const parts = text.split(this.pattern); // odd places hold what matched
    return parts.map((part, place) => (place % 2 ? `<mark>${esc(part)}</mark>` : esc(part))).join("");
  }

  row(row) {
    const cell = (css, text) => `<span class="${css}${text ? "" : " unknown"}">${text}</span>`;
    const size = row.count ? `${number(row.count)} ${esc(row.unit || "")}` : "";
    return `<li><a href="#/dataset/${encodeURIComponent(row.id)}" class="row"><span class="name"><b>${this.name(row.name)}</b>&nbsp;${basisMark(row.basis)}</span>
${cell("modality", said(row, "modality"))}${cell("organ", said(row, "organ"))}${cell("task", said(row, "task"))}
${cell("count", size)}${cell("licence", esc(row.licence || ""))}${cell("access", said(row, "access"))}${cell("year", row.year || "")}</a></li>`;
  }

  /** Move the focus by `step` rows; from outside the list to its first row. */
  move(step) {
    const rows = [...this.body.querySelectorAll("a.row")];
    const here = rows.indexOf(document.activeElement);
    const next = here < 0 ? 0 : here + step;
    if (next < 0) return byId("query").focus();
    if (next >= rows.length - 3) this.extend();
    (rows[next] || this.body.querySelectorAll("a.row")[next])?.focus();
    return undefined;
  }
}

/** Labels of a facet of a row, as HTML; empty when not known. */
const LABELS = Object.fromEntries(DATA.facets.map((facet) => [facet.key, new Map(facet.values.map((entry) => [entry.value, entry.label]))]));
const said = (row, key) =>
  esc(row.facets[key].filter((value) => value !== UNKNOWN && value !== "unknown").map((value) => LABELS[key].get(value)).join(", "));

// As in the terminal: see LEGEND of the catalogue's records.
const SIGNS = { "partly recalled": "~", recalled: "~~", own: "+" };
const basisMark = (basis) =>
  SIGNS[basis]
    ? `<span class="basis" title="${esc(DATA.bases[basis])}"><span aria-hidden="true">${SIGNS[basis]}</span><span class="unseen">(${esc(basis)})</span></span>`
    : "";

class Facets {
  constructor(index, changed) {
    this.index = index;
    this.changed = changed;
    this.body = byId("facets");
    this.body.innerHTML = index.facets.map((facet) => (facet.key === "year" ? this.years(facet) : this.group(facet))).join("");
    this.inputs = index.facets.map((facet) => [...this.body.querySelectorAll(`[data-facet="${facet.key}"][data-value]`)]);
    this.body.addEventListener("change", (event) => this.toggle(event.target));
    this.body.addEventListener("click", (event) => this.click(event));
  }

  group(facet) {
    const values = facet.values.map(
      (entry, place) => `<label class="value" ${place >= SHORT ? 'data-rare="1"' : ""}>
<input type="checkbox" data-facet="${facet.key}" data-value="${esc(entry.value)}"><span>${esc(entry.label)}</span><output></output></label>`,
    );
    const more = facet.values.length > SHORT ? `<button type="button" class="plain all" aria-expanded="false">all ${facet.values.length}</button>` : "";
    return `<fieldset data-facet="${facet.key}"><legend>${esc(facet.label)}</legend>${values.join("")}${more}</fieldset>`;
  }

  years(facet) {
    const bars = facet.values.map((entry) =>
      entry.value === UNKNOWN
        ? ""
        : `<button type="button" class="bar" data-facet="year" data-value="${esc(entry.value)}" aria-pressed="false"><i></i></button>`,
    );
    const known = facet.values.map((entry) => entry.value).filter((value) => value !== UNKNOWN);
    return `<fieldset data-facet="year"><legend>${esc(facet.label)}</legend><div class="bars">${bars.join("")}</div>
<div class="ends"><span>${esc(known[0])}</span><span id="year-said"></span><span>${esc(known.at(-1))}</span></div>
<div class="span"><label>from <input id="year-from" inputmode="numeric" size="4" maxlength="4"></label><label>to <input id="year-to" inputmode="numeric" size="4" maxlength="4"></label></div>
<label class="value"><input type="checkbox" data-facet="year" data-value="${UNKNOWN}"><span>not known</span><output></output></label></fieldset>`;
  }

  toggle(input) {
    if (input.id === "year-from" || input.id === "year-to") return this.span();
    const { facet, value } = input.dataset;
    if (!facet) return undefined;
    return this.changed((chosen) => (input.checked ? chosen[facet].add(value) : chosen[facet].delete(value)));
  }

  span() {
    const [from, to] = ["year-from", "year-to"].map((id) => Number.parseInt(byId(id).value, 10));
    this.changed((chosen) => {
      const unknown = chosen.year.has(UNKNOWN);
      chosen.year.clear();
      if (unknown) chosen.year.add(UNKNOWN);
      if (Number.isNaN(from) && Number.isNaN(to)) return;
      for (const { value } of this.index.facets.find((facet) => facet.key === "year").values) {
        const year = Number(value);
        if (value !== UNKNOWN && !(year < from) && !(year > to)) chosen.year.add(value);
      }
    });
  }

  click(event) {
    const all = event.target.closest(".all");
    if (all) {
      const open = all.getAttribute("aria-expanded") !== "true";
      all.setAttribute("aria-expanded", String(open));
      all.parentElement.classList.toggle("open", open);
      all.textContent = open ? "fewer" : `all ${all.parentElement.querySelectorAll(".value").length}`;
    }
    const bar = event.target.closest(".bar");
    if (!bar) return;
    const { value } = bar.dataset;
    this.changed((chosen) => {
      const years = [...chosen.year].filter((year) => year !== UNKNOWN).map(Number);
      if (event.shiftKey && years.length) {
        const [low, high] = [Math.min(...years, Number(value)), Math.max(...years, Number(value))];
        for (let year = low; year <= high; year += 1) if (this.index.codes[this.yearPlace].has(String(year))) chosen.year.add(String(year));
      } else if (chosen.year.has(value)) chosen.year.delete(value);
      else chosen.year.add(value);
    });
  }

  get yearPlace() {
    return this.index.facets.findIndex((facet) => facet.key === "year");
  }

  show(counts, chosen) {
    this.index.facets.forEach((facet, place) => {
      const most = Math.max(1, ...counts[place].filter((_, code) => facet.values[code].value !== UNKNOWN));
      for (const input of this.inputs[place]) {
        const count = counts[place][this.index.codes[place].get(input.dataset.value)];
        const on = chosen[facet.key].has(input.dataset.value);
        if (input.classList.contains("bar")) this.bar(input, count, count / most, on);
        else this.value(input, count, on);
      }
    });
    this.sayYears(chosen.year);
  }

  value(input, count, on) {
    if (input.checked !== on) input.checked = on;
    const label = input.parentElement;
    if (input.count !== count) label.lastElementChild.textContent = number(count);
    input.count = count;
    label.classList.toggle("none", count === 0 && !on);
    label.classList.toggle("on", on);
  }

  bar(button, count, share, on) {
    button.firstElementChild.style.height = count ? `${Math.max(4, share * 100)}%` : "0";
    if (button.count !== count) {
      button.title = `${button.dataset.value}: ${plural(count, "dataset")}`;
      button.setAttribute("aria-label", button.title);
    }
    button.count = count;
    button.setAttribute("aria-pressed", String(on));
    button.classList.toggle("on", on);
  }

  sayYears(chosen) {
    const years = [...chosen].filter((year) => year !== UNKNOWN).map(Number);
    const [low, high] = [Math.min(...years), Math.max(...years)];
    const gaps = high - low >= years.length;
    byId("year-said").textContent = gaps ? plural(years.length, "year") : years.length > 1 ? `${low}–${high}` : years.join("");
    if (document.activeElement?.id !== "year-from") byId("year-from").value = years.length ? low : "";
    if (document.activeElement?.id !== "year-to") byId("year-to").value = years.length ? high : "";
  }
}
