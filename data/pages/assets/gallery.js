// The matrix of modality and organ, the thumbnails below it, and the address: #/?modality=ct&organ=chest, #/sample/KEY.

const CAPITALS = new Set(["ct", "cbct", "dbt", "mri", "pet", "spect", "oct", "octa", "slo", "dsa", "em"]);
const spelt = (word) => (CAPITALS.has(word) ? word.toUpperCase() : word === "fmri" ? "fMRI" : word === "dmri" ? "diffusion MRI" : word[0].toUpperCase() + word.slice(1));

class Gallery {
  constructor() {
    this.samples = new Map(DATA.samples.map((sample) => [sample.key, sample]));
    this.chosen = { modality: "", organ: "" };
    this.shown = [];
    this.viewer = new Viewer(() => this.shown);
    this.drawMatrix();
    drawSources();
    byId("matrix").addEventListener("click", (event) => this.click(event.target.closest("button")));
    byId("everything").addEventListener("click", () => this.go({ modality: "", organ: "" }));
    byId("viewer").addEventListener("close", () => this.closed());
    addEventListener("hashchange", () => this.follow());
    addEventListener("keydown", (event) => {
      if (event.key === "?" && !isTyping(event) && !this.viewer.dialog.open) byId("help").showModal();
    });
    this.draw();
    this.follow();
  }

  drawMatrix() {
    const modalities = [...new Set(DATA.cells.map((cell) => cell.modality))];
    const sums = new Map();
    for (const cell of DATA.cells) sums.set(cell.organ, (sums.get(cell.organ) || 0) + cell.count);
    const organs = [...sums.keys()].sort((a, b) => sums.get(b) - sums.get(a));
    const most = Math.log(Math.max(2, ...DATA.cells.map((cell) => cell.count)));
    const cells = new Map(DATA.cells.map((cell) => [`${cell.modality} ${cell.organ}`, cell]));
    const head = organs.map((organ) => `<th scope="col"><button type="button" data-organ="${esc(organ)}">${esc(organ)}</button></th>`);
    const rows = modalities.map((modality) => {
      const row = organs.map((organ) => {
        const cell = cells.get(`${modality} ${organ}`);
        if (!cell) return "<td></td>";
        const level = 1 + Math.min(4, Math.floor((Math.log(cell.count) / most) * 5));
        const about = cell.estimated ? "about " : "";
        return `<td><button type="button" class="level-${level}" data-modality="${esc(modality)}" data-organ="${esc(organ)}" aria-label="${esc(spelt(modality))}, ${esc(organ)}: ${about}${number(cell.count)}">${cell.estimated ? "≈" : ""}${number(cell.count)}</button></td>`;
      });
      return `<tr><th scope="row"><button type="button" data-modality="${esc(modality)}">${esc(spelt(modality))}</button></th>${row.join("")}</tr>`;
    });
    byId("matrix").innerHTML = `<thead><tr><td></td>${head.join("")}</tr></thead><tbody>${rows.join("")}</tbody>`;
  }

  click(button) {
    if (!button) return;
    const next = { modality: button.dataset.modality || "", organ: button.dataset.organ || "" };
    const same = next.modality === this.chosen.modality && next.organ === this.chosen.organ;
    this.go(same ? { modality: "", organ: "" } : next);
  }

  go(chosen) {
    const words = new URLSearchParams(Object.entries(chosen).filter(([, value]) => value));
    location.hash = `#/${String(words) ? `?${words}` : ""}`;
  }

  /** Read the address. */
  follow() {
    const [path, search] = location.hash.replace(/^#/, "").split("?");
    const sample = path.match(/^\/sample\/(.+)$/);
    if (sample) {
      const found = this.samples.get(decodeURIComponent(sample[1]));
      if (found) this.viewer.show(found);
      return;
    }
    if (this.viewer.dialog.open) this.viewer.dialog.close();
    const words = new URLSearchParams(search || "");
    const before = JSON.stringify(this.chosen);
    this.chosen = { modality: words.get("modality") || "", organ: words.get("organ") || "" };
    if (before !== JSON.stringify(this.chosen)) this.draw();
  }

  closed() {
    const last = this.viewer.sample.key;
    if (location.hash.startsWith("#/sample/")) {
      const words = new URLSearchParams(Object.entries(this.chosen).filter(([, value]) => value));
      history.replaceState(null, "", `#/${String(words) ? `?${words}` : ""}`);
    }
    document.querySelector(`a[href="#/sample/${CSS.escape(encodeURIComponent(last))}"]`)?.focus();
  }

  draw() {
    const { modality, organ } = this.chosen;
    const fits = (one) => (!modality || one.modality === modality) && (!organ || one.organ === organ);
    const cells = DATA.cells.filter(fits);
    const groups = new Map();
    for (const cell of cells) groups.set(cell.modality, (groups.get(cell.modality) || 0) + cell.count);
    this.shown = [];
    const html = [...groups].map(([name, count]) => {
      const own = cells.filter((cell) => cell.modality === name).flatMap((cell) => DATA.samples.filter((sample) => sample.modality === name && sample.organ === cell.organ));
      this.shown.push(...own);
      const about = cells.some((cell) => cell.modality === name && cell.estimated) ? "about " : "";
      return `<section><h2>${esc(spelt(name))} <span class="soft">${about}${plural(count, "sample")}, ${number(own.length)} shown</span></h2><ul class="tiles">${own.map((sample) => this.tile(sample)).join("")}</ul></section>`;
    });
    byId("groups").innerHTML = html.join("") || '<p class="soft">No such kind of image here.</p>';
    byId("everything").hidden = !modality && !organ;
    for (const button of byId("matrix").querySelectorAll("button")) {
      const { modality: row = "", organ: column = "" } = button.dataset;
      button.setAttribute("aria-pressed", String(Boolean(modality || organ) && row === modality && column === organ));
    }
  }

  tile(sample) {
    const label = sample.labels.class || "";
    const depth = sample.ndim === 3 ? `<span class="depth" title="volume">${number(sample.shape[1])} slices</span>` : "";
    const says = [spelt(sample.modality), sample.organ, label, sample.dataset].filter(Boolean).join(", ");
    return `<li><a href="#/sample/${encodeURIComponent(sample.key)}"><img src="${esc(sample.thumbnail)}" alt="${esc(says)}" width="160" height="160" loading="lazy" decoding="async">${depth}
<span class="says"><b>${esc(sample.organ)}</b>${label ? ` ${esc(label)}` : ""}</span><span class="from">${esc(sample.dataset)}</span></a></li>`;
  }
}

const gallery = new Gallery();
document.documentElement.dataset.ready = "1";
performance.mark("shown");
