// One dataset: its facts, where they come from, its relations as a graph and in words, and its route here.

class Detail {
  constructor(index, data) {
    this.index = index;
    this.data = data;
    this.names = new Map(data.datasets.map((row) => [row.id, row.name]));
    this.graph = new RelationGraph(data, this.names);
    this.body = byId("detail");
    this.shown = "";
    addEventListener("resize", settled(() => this.shown && this.drawGraph(), 120));
  }

  show(id) {
    const row = this.index.byId.get(id);
    this.shown = row ? id : "";
    this.all = false;
    if (!row) {
      this.body.innerHTML = `<h1 tabindex="-1">No dataset “${esc(id)}”</h1><p><a href="#/">Back to the catalogue</a></p>`;
      return;
    }
    this.body.innerHTML = `${this.head(row)}${this.facts(row)}${this.relations(row)}${(row.sections || []).map((part) => this.section(part)).join("")}${this.commands(row)}`;
    this.drawGraph();
    this.body.querySelector("h1").focus({ preventScroll: true });
  }

  head(row) {
    const kinds = ["modality", "organ", "task"].map((key) => said(row, key));
    const told = row.remembered ? row.remembered.join("; ") : this.data.bases[row.basis];
    const why = told && `${told[0].toUpperCase()}${told.slice(1)}${told.endsWith(".") ? "" : "."}`;
    const basis = row.basis === "read" ? "" : `<p class="note">${basisMark(row.basis)} ${esc(why)}</p>`;
    return `<p class="kicker mono">${esc(row.id)}</p><h1 tabindex="-1">${esc(row.name)}</h1>
<p class="lead soft">${[...kinds, row.year].filter(Boolean).join(" · ")}</p>${basis}`;
  }

  facts(row) {
    const rows = [
      ["Modality", said(row, "modality")],
      ["Organ", said(row, "organ")],
      ["Category", said(row, "category")],
      ["Dimensions", esc(row.dims || "")],
      ["Tasks", said(row, "task")],
      ["Size", row.count ? esc(`${number(row.count)} ${row.unit || ""}`) : ""],
      ["Subjects", row.subjects ? number(row.subjects) : ""],
      ["Formats", esc(row.formats || "")],
      ["Year", row.year || ""],
      ["Access", `${esc(row.access)} <span class="soft">${esc(this.data.access[row.access] || "")}</span>`],
      ["Licence", `${esc(row.licence || "not known")} <span class="soft">${esc(row.terms || "")}</span>`],
      ["Page", row.homepage ? link(row.homepage) : ""],
      ["Download", (row.download || []).map((url) => link(url)).join("<br>")],
      ["Paper", row.paper ? link(row.paper, row.paper_label) : ""],
      ["Notes", esc(row.notes || "")],
      ["Facts from", row.sources.map((source) => this.source(source)).join(", ")],
    ];
    const shown = rows.map(([name, text]) => `<div><dt>${name}</dt><dd>${text || '<span class="soft">not known</span>'}</dd></div>`);
    return `<dl class="facts">${shown.join("")}</dl>`;
  }

  source(token) {
    return this.data.recalled.includes(token) ? `<span class="basis">${esc(token)}</span>` : esc(token);
  }

  relations(row) {
    const reached = this.graph.reach(row.id);
    if (reached.length < 2)
      return '<section><h2>Relations</h2><p class="soft">None is recorded. That does not prove that no case is shared.</p></section>';
    const near = reached.filter((node) => node.depth === 1).length;
    const far = reached.length - 1 - near;
    const possible = reached.filter((node) => node.possible).length;
    const sure = reached.length - 1 - possible;
    this.all = reached.length <= 26;
    const button = far ? `<button type="button" class="quiet eases" id="reach" aria-pressed="${this.all}">Through others too (${far})</button>` : "";
    return `<section class="relations"><div class="bar-of"><h2>Relations</h2>${button}</div>
<p class="soft">${plural(sure, "dataset")} share${sure === 1 ? "s" : ""} cases with it${possible ? `, ${number(possible)} more may` : ""}, as far as relations are recorded${far ? `; ${number(near)} of them are related directly` : ""}. To hold it out, hold them out too.</p>
<div class="graph" id="graph" tabindex="0" role="group" aria-label="Graph of relations"></div><p class="legend" id="legend"></p>
<div id="said"></div></section>`;
  }

  legend(reached) {
    const kinds = new Set(reached.slice(1).map((node) => node.edge.kind));
    const keys = [...kinds].map((kind) => `<span><svg width="26" height="8"><path class="edge ${kind}" d="M0,4H26"/></svg>${kind.replace("-", " ")}</span>`);
    if (reached.some((node) => node.possible)) keys.push('<span><i>grey</i> may share cases</span>');
    if (reached.some((node) => node.edge?.basis === "recalled"))
      keys.push('<span><svg width="26" height="8"><path class="edge" d="M0,4H26" stroke-dasharray="4 3"/></svg>recalled, not read in a source</span>');
    return keys.join("");
  }

  drawGraph() {
    const box = byId("graph");
    if (!box) return;
    const nodes = this.graph.draw(box, this.shown, this.all ? Infinity : 1);
    byId("legend").innerHTML = this.legend(nodes);
    byId("said").innerHTML = `<ul class="said">${nodes.slice(1).map((node) => this.sentence(node)).join("")}</ul>`;
    const button = byId("reach");
    if (!button) return;
    button.onclick = () => {
      this.all = !this.all;
      button.setAttribute("aria-pressed", String(this.all));
      this.drawGraph();
    };
  }

  sentence(node) {
    const name = (id) => `<a href="#/dataset/${encodeURIComponent(id)}">${esc(this.names.get(id))}</a>`;
    const { says, basis, url } = node.edge;
    const start = node.depth > 1 ? `${name(node.from.id)} ` : "";
    const word = node.depth > 1 ? says : says[0].toUpperCase() + says.slice(1);
    const proof = url ? link(url, basis === "recalled" ? "where to check" : "source") : "";
    const mark = basis === "recalled" ? `<span class="basis" aria-hidden="true">~~</span> <span class="soft">recalled</span>` : "";
    return `<li${node.possible ? ' class="possible"' : ""}>${start}${word} ${name(node.id)} <span class="proof">${node.possible ? "may share cases" : ""} ${mark} ${proof}</span></li>`;
  }

  commands(row) {
    if (row.commands === undefined) return "";
    const lines = this.data.commands[row.commands].map((line) => line.replaceAll("{id}", row.id));
    return `<section><h2>With medloom</h2><pre class="wide" tabindex="0" role="group" aria-label="Commands"><code>${esc(lines.join("\n"))}</code></pre></section>`;
  }

  /** {title, note, basis, rows: [[name, text or {url, text} or {code}]], table: {head, rows}} */
  section(part) {
    const cell = (value) => {
      if (value === null || value === undefined || value === "") return '<span class="soft">–</span>';
      if (Array.isArray(value)) return value.map(cell).join("<br>");
      if (value.url) return link(value.url, value.text);
      if (value.basis) return `<span class="soft small">${value.basis === "recalled" ? basisMark("recalled") : ""} ${esc(value.text)}</span>`;
      if (value.code) return `<code>${esc(value.code)}</code>`;
      return esc(value);
    };
    const note = part.note ? `<p class="soft">${part.basis === "recalled" ? basisMark("recalled") : ""} ${esc(part.note)}</p>` : "";
    const rows = (part.rows || []).map(([name, value]) => `<div><dt>${esc(name)}</dt><dd>${cell(value)}</dd></div>`).join("");
    const table = part.table
      ? `<div class="wide" tabindex="0" role="group" aria-label="${esc(part.title)}"><table><thead><tr>${part.table.head.map((name) => `<th scope="col">${esc(name)}</th>`).join("")}</tr></thead>
<tbody>${part.table.rows.map((row) => `<tr>${row.map((value, place) => (place ? `<td>${cell(value)}</td>` : `<th scope="row">${cell(value)}</th>`)).join("")}</tr>`).join("")}</tbody></table></div>`
      : "";
    return `<section><h2>${esc(part.title)}</h2>${note}${rows ? `<dl class="facts">${rows}</dl>` : ""}${table}</section>`;
  }
}
