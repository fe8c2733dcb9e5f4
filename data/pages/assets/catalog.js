// The page: state in the address (#/?q=liver&modality=ct and #/dataset/lits), keys, and what each change redraws.

class Page {
  constructor() {
    this.index = new CatalogIndex(DATA);
    this.list = new ResultList(this.index);
    this.facets = new Facets(this.index, (change) => this.choose(change));
    this.detail = new Detail(this.index, DATA);
    this.state = this.empty();
    this.frame = 0;
    this.scroll = 0;
    this.listen();
    this.follow();
  }

  empty() {
    return { query: "", sort: "match", chosen: Object.fromEntries(DATA.facets.map((facet) => [facet.key, new Set()])) };
  }

  listen() {
    byId("query").addEventListener("input", (event) => {
      this.state.query = event.target.value;
      this.redraw();
    });
    byId("sort").addEventListener("change", (event) => {
      this.state.sort = event.target.value;
      this.redraw();
    });
    byId("chips").addEventListener("click", (event) => this.drop(event.target.closest("button")));
    byId("nothing").addEventListener("click", (event) => event.target.closest("button") && this.clear());
    byId("filters").addEventListener("click", () => this.drawer(true));
    byId("drawer-done").addEventListener("click", () => this.drawer(false));
    byId("back").addEventListener("click", (event) => this.back(event));
    addEventListener("hashchange", () => this.follow());
    addEventListener("keydown", (event) => this.key(event));
    matchMedia("(max-width: 860px)").addEventListener("change", () => this.drawer(false));
  }

  /** Read the address. */
  follow() {
    const [path, search] = (location.hash.replace(/^#/, "") || "/").split("?");
    const dataset = path.match(/^\/dataset\/(.+)$/);
    if (dataset && !byId("catalog").hidden) this.scroll = scrollY;
    byId("catalog").hidden = Boolean(dataset);
    byId("record").hidden = !dataset;
    byId("title").hidden = Boolean(dataset);
    if (dataset) {
      const id = decodeURIComponent(dataset[1]);
      document.title = `${this.detail.names.get(id) || id} · ${DATA.title}`;
      this.detail.show(id);
      scrollTo(0, 0);
      return;
    }
    document.title = DATA.title;
    const last = this.detail.shown;
    this.detail.shown = "";
    const before = this.drawn && this.address();
    this.read(new URLSearchParams(search || ""));
    if (before !== this.address()) this.draw();
    if (!last) return;
    scrollTo(0, this.scroll);
    this.list.body.querySelector(`a[href="#/dataset/${CSS.escape(last)}"]`)?.focus({ preventScroll: true });
  }

  read(words) {
    this.state = this.empty();
    this.state.query = words.get("q") || "";
    this.state.sort = words.get("sort") || "match";
    for (const facet of DATA.facets) {
      const known = this.index.codes[this.index.facets.indexOf(facet)];
      for (const value of (words.get(facet.key) || "").split("|")) if (known.has(value)) this.state.chosen[facet.key].add(value);
    }
    byId("query").value = this.state.query;
    byId("sort").value = this.state.sort;
    if (byId("sort").selectedIndex < 0) byId("sort").value = this.state.sort = "match";
  }

  address() {
    const words = new URLSearchParams();
    if (this.state.query) words.set("q", this.state.query);
    for (const [key, chosen] of Object.entries(this.state.chosen)) if (chosen.size) words.set(key, [...chosen].join("|"));
    if (this.state.sort !== "match") words.set("sort", this.state.sort);
    return `#/${String(words) ? `?${words}` : ""}`;
  }

  choose(change) {
    change(this.state.chosen);
    this.redraw();
  }

  drop(button) {
    if (!button) return;
    if (button.dataset.facet) this.choose((chosen) => (button.dataset.value ? chosen[button.dataset.facet].delete(button.dataset.value) : chosen[button.dataset.facet].clear()));
    else this.clear();
    byId("query").focus();
  }

  clear() {
    this.state = { ...this.empty(), sort: this.state.sort };
    byId("query").value = "";
    this.redraw();
  }

  /** Draw in the next frame; several changes before it are one. */
  redraw() {
    this.frame ||= requestAnimationFrame(() => this.draw());
    this.keep ??= settled(() => byId("record").hidden && history.replaceState(null, "", this.address()), 150);
    this.keep();
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.drawn = true;
    const { found, counts } = this.index.search(this.state);
    this.list.show(found, this.index.words(this.state.query));
    this.facets.show(counts, this.state.chosen);
    const chips = Object.entries(this.state.chosen).flatMap(([key, chosen]) => this.chips(key, chosen));
    byId("chips").innerHTML = chips.length ? `${chips.join("")}<button type="button" class="plain">clear all</button>` : "";
    byId("found").textContent = found.length === this.index.rows.length ? plural(found.length, "dataset") : `${number(found.length)} of ${plural(this.index.rows.length, "dataset")}`;
    byId("nothing").hidden = found.length > 0;
    byId("columns").hidden = !found.length;
    const count = Object.values(this.state.chosen).reduce((sum, chosen) => sum + (chosen.size ? 1 : 0), 0);
    byId("filters").textContent = count ? `Filters (${count})` : "Filters";
    byId("drawer-done").textContent = `Show ${plural(found.length, "dataset")}`;
  }

  chips(key, chosen) {
    const facet = DATA.facets.find((one) => one.key === key);
    const chip = (value, text) => `<button type="button" class="chip eases" data-facet="${key}" data-value="${esc(value)}"><span class="unseen">Remove ${esc(facet.label)} </span>${esc(text)} <span aria-hidden="true">×</span></button>`;
    if (key === "year" && chosen.size > 3) return [chip("", byId("year-said").textContent || `${chosen.size} years`)];
    return [...chosen].map((value) => chip(value, value === UNKNOWN ? `${facet.label.toLowerCase()} not known` : LABELS[key].get(value)));
  }

  drawer(open) {
    document.body.classList.toggle("drawn", open);
    byId("filters").setAttribute("aria-expanded", String(open));
    if (open) byId("facets").querySelector("input")?.focus();
    else if (byId("sidebar").contains(document.activeElement)) byId("filters").focus();
  }

  back(event) {
    event?.preventDefault();
    location.hash = this.address();
  }

  key(event) {
    if (byId("help").open) return;
    const list = !byId("catalog").hidden;
    const inQuery = document.activeElement === byId("query");
    if (event.key === "Escape") return this.escape(list, inQuery);
    if (list && event.key === "ArrowDown" && (inQuery || document.activeElement.matches("a.row"))) return this.step(event, 1);
    if (list && event.key === "ArrowUp" && document.activeElement.matches("a.row")) return this.step(event, -1);
    if (isTyping(event)) return undefined;
    if (event.key === "?") return byId("help").showModal();
    if (event.key === "/") {
      event.preventDefault();
      if (!list) this.back();
      setTimeout(() => byId("query").select(), list ? 0 : 60);
    }
    if (list && event.key === "j") return this.step(event, 1);
    if (list && event.key === "k") return this.step(event, -1);
    return undefined;
  }

  step(event, by) {
    event.preventDefault();
    this.list.move(by);
  }

  escape(list, inQuery) {
    if (document.body.classList.contains("drawn")) this.drawer(false);
    else if (!list) this.back();
    else if (inQuery && this.state.query) {
      byId("query").value = this.state.query = "";
      this.redraw();
    } else byId("query").focus();
  }
}

const page = new Page();
document.documentElement.dataset.ready = "1";
performance.mark("shown");
