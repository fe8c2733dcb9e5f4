// Which rows match, and how many more each facet value would give. One pass over the rows: a row that no
// facet refuses counts for all of them, a row that just one refuses counts for that one.

// As in data/catalog/search.py: every word typed must begin a word of the row; name 8, tokens 4, notes 1, whole
// words twice. `words` of a row are these three parts, a blank before each word.
const WEIGHTS = [8, 4, 1];
const byName = (a, b) => (a.order < b.order ? -1 : a.order > b.order ? 1 : 0);
const byRow = (a, b) => (a.id < b.id ? -1 : 1);

class CatalogIndex {
  constructor(data) {
    this.rows = data.datasets;
    this.facets = data.facets; // [{key, label, values: [{value, label}]}]
    this.codes = this.facets.map((facet) => new Map(facet.values.map((entry, code) => [entry.value, code])));
    this.rows.forEach((row) => this.prepare(row));
    this.rows.sort(byName); // once: what is found comes out in this order
    this.byId = new Map(this.rows.map((row) => [row.id, row]));
  }

  prepare(row) {
    row.codes = this.facets.map((facet, place) =>
      facet.key in row.facets ? row.facets[facet.key].map((value) => this.codes[place].get(value)) : [],
    );
    row.order = row.name.toLowerCase();
  }

  words(query) {
    return query.toLowerCase().match(/[a-z0-9]+/g) || [];
  }

  score(row, words) {
    let total = 0;
    for (const word of words) {
      let best = 0;
      for (let part = 0; part < 3; part += 1) {
        const text = row.words[part];
        const place = text.indexOf(` ${word}`);
        if (place < 0 || 2 * WEIGHTS[part] <= best) continue;
        const whole = text.endsWith(` ${word}`) || text.includes(` ${word} `, place);
        best = Math.max(best, WEIGHTS[part] * (whole ? 2 : 1));
      }
      if (!best) return 0;
      total += best;
    }
    return total;
  }

  /** state: {query, sort, chosen: {facet: Set of values}} -> {found: rows in order, counts: per facet, per value}. */
  search(state) {
    const words = this.words(state.query);
    const counts = this.facets.map((facet) => new Uint32Array(facet.values.length));
    const wanted = this.facets.map((facet, place) => this.wanted(facet, place, state.chosen[facet.key]));
    const found = [];
    for (const row of this.rows) {
      row.score = words.length ? this.score(row, words) : 1;
      if (!row.score) continue;
      let refused = -1;
      let refusals = 0;
      for (let place = 0; place < wanted.length && refusals < 2; place += 1) {
        if (wanted[place] && !row.codes[place].some((code) => wanted[place][code])) {
          refused = place;
          refusals += 1;
        }
      }
      if (refusals > 1) continue;
      for (let place = refusals ? refused : 0; place < (refusals ? refused + 1 : counts.length); place += 1) {
        for (const code of row.codes[place]) counts[place][code] += 1;
      }
      if (!refusals) found.push(row);
    }
    return { found: this.sorted(found, state.sort, words.length > 0), counts };
  }

  /** Flags by code of what is chosen in a facet, or null when nothing is. */
  wanted(facet, place, chosen) {
    if (!chosen || !chosen.size) return null;
    const flags = new Uint8Array(facet.values.length);
    for (const value of chosen) if (this.codes[place].has(value)) flags[this.codes[place].get(value)] = 1;
    return flags;
  }

  sorted(rows, sort, queried) {
    const ways = {
      newest: (a, b) => (b.year || 0) - (a.year || 0) || byName(a, b),
      oldest: (a, b) => (a.year || 9999) - (b.year || 9999) || byName(a, b),
      largest: (a, b) => (b.count || 0) - (a.count || 0) || byName(a, b),
      match: queried ? (a, b) => b.score - a.score || byRow(a, b) : null,
    };
    const way = sort === "name" ? null : (ways[sort] ?? ways.match);
    return way ? rows.sort(way) : rows;
  }
}
