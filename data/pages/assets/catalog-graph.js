// The relations of a dataset as a graph: the tree of surest paths that data/catalog/graph.py found. What it comes from
// stands on the left, what comes from it or shares cases on the right, each further step one column out. Solid lines were read in a source,
// dashed ones are recalled. On a narrow screen it is one indented tree.

const KINDS = {
  contains: { says: "contains", back: "is contained in" },
  "derived-from": { says: "is derived from", back: "is the origin of" },
  "shares-cases": { says: "shares cases with", back: "shares cases with" },
  "same-as": { says: "is the same as", back: "is the same as" },
  "member-of": { says: "is a member of", back: "has the member" },
};
const RANK = Object.keys(KINDS);
const LINE = 24;
const WIDE = 700;
const GAP = 64;

class RelationGraph {
  constructor(data, names) {
    this.names = names;
    this.relations = data.relations; // [a, kind, b, basis, url]
    this.relatives = data.relatives; // {id: [[relative, the one it hangs on, relation, only possible]]}, from the root
  }

  /** The tree of relatives: [{id, depth, from, edge, side, possible, children}], the dataset itself first. */
  reach(id, most = Infinity) {
    const root = { id, depth: 0, children: [], side: 1 };
    const nodes = new Map([[id, root]]);
    const waiting = [...(this.relatives[id] || [])];
    for (let tried = 0; waiting.length && tried <= waiting.length; ) {
      const [name, parent, relation, possible] = waiting.shift();
      const from = nodes.get(parent);
      if (!from) {
        waiting.push([name, parent, relation, possible]);
        tried += 1;
        continue;
      }
      tried = 0;
      const edge = this.edge(relation, parent);
      const side = from.depth ? from.side : edge.upstream ? -1 : 1;
      const node = { id: name, depth: from.depth + 1, from, edge, side, possible: Boolean(possible), children: [] };
      nodes.set(name, node);
      from.children.push(node);
    }
    for (const node of nodes.values()) node.children.sort((a, b) => RANK.indexOf(a.edge.kind) - RANK.indexOf(b.edge.kind) || byRow(a, b));
    return this.inOrder(root, most);
  }

  /** A relation, seen from one of its ends. */
  edge(place, from) {
    const [a, kind, , basis, url] = this.relations[place];
    const forward = a === from;
    const upstream = forward ? kind === "derived-from" || kind === "member-of" : kind === "contains";
    const toChild = forward === (kind === "contains"); // arrows lead to the part, and to what was derived
    return { kind, says: forward ? KINDS[kind].says : KINDS[kind].back, upstream, basis, url, toChild };
  }

  inOrder(node, most) {
    if (node.depth >= most) node.children = [];
    return [node, ...node.children.flatMap((child) => this.inOrder(child, most))];
  }

  /** Give each node a line of its side (leaves in turn, parents amid their children); returns the lines used. */
  place(node, side, line) {
    const children = node.children.filter((child) => child.side === side);
    if (!children.length) {
      node.line = line;
      return line + 1;
    }
    let next = line;
    for (const child of children) next = this.place(child, side, next);
    node.line = (children[0].line + children.at(-1).line) / 2;
    return next;
  }

  draw(box, id, most) {
    const nodes = this.reach(id, most);
    const width = Math.max(280, box.clientWidth);
    box.innerHTML = width < WIDE ? this.indented(nodes, width) : this.sided(nodes, width);
    return nodes;
  }

  sided(nodes, width) {
    const root = nodes[0];
    const lines = { "-1": this.place(root, -1, 0), 1: this.place(root, 1, 0) };
    const height = Math.max(lines[-1], lines[1], 2) * LINE + 16;
    const columns = this.columns(nodes, width);
    for (const node of nodes) {
      const spare = node === root ? 0 : (height - 16 - lines[node.side] * LINE) / 2;
      node.x = columns.get(node.side * node.depth);
      node.y = node === root ? height / 2 : 8 + spare + (node.line + 0.5) * LINE;
    }
    return this.svg(nodes, Math.max(width, columns.width), height, (from, to) => {
      const [start, end] = to.x > from.x ? [from.x + from.length + 6, to.x - 8] : [from.x - 8, to.x + to.length + 6];
      const bend = (start + end) / 2;
      return `M${start.toFixed(1)},${from.y.toFixed(1)}C${bend.toFixed(1)},${from.y.toFixed(1)} ${bend.toFixed(1)},${to.y.toFixed(1)} ${end.toFixed(1)},${to.y.toFixed(1)}`;
    });
  }

  /** Where each column (signed distance) begins: as wide as its longest name, within what there is. */
  columns(nodes, width) {
    const numbers = [...new Set(nodes.map((node) => node.side * node.depth))].sort((a, b) => a - b);
    const room = Math.min(300, Math.max(175, width / numbers.length - GAP));
    let x = 0;
    const columns = new Map();
    for (const number of numbers) {
      columns.set(number, x);
      const own = nodes.filter((node) => node.side * node.depth === number);
      own.forEach((node) => this.measure(node, room));
      x += Math.max(...own.map((node) => node.length)) + GAP;
    }
    columns.width = x - GAP + 4;
    return columns;
  }

  indented(nodes, width) {
    const order = [];
    const walk = (node) => {
      order.push(node);
      node.children.forEach(walk);
    };
    walk(nodes[0]);
    order.forEach((node, place) => {
      node.x = 4 + Math.min(node.depth, 6) * 20;
      node.y = (place + 0.5) * LINE + 4;
      this.measure(node, width - node.x - 8);
    });
    return this.svg(order, width, order.length * LINE + 8, (from, to) => `M${from.x + 4},${from.y + 9}V${to.y}H${to.x - 5}`);
  }

  svg(nodes, width, height, path) {
    const lines = nodes.slice(1).map((node) => {
      const said = `${this.names.get(node.from.id)} ${node.edge.says} ${this.names.get(node.id)}`;
      const dashed = node.edge.basis === "recalled" ? ' stroke-dasharray="4 3"' : "";
      const arrow = ["shares-cases", "same-as"].includes(node.edge.kind) ? "" : ` marker-${node.edge.toChild ? "end" : "start"}="url(#to-${node.edge.kind})"`;
      return `<path class="edge ${node.edge.kind}" d="${path(node.from, node)}"${dashed}${arrow}><title>${esc(said)}</title></path>`;
    });
    const heads = Object.keys(KINDS).map(
      (kind) => `<marker id="to-${kind}" class="${kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse"><path d="M1,1L7,4L1,7"/></marker>`,
    );
    const labels = nodes.map((node) => this.label(node));
    return `<svg width="${Math.round(width)}" height="${Math.round(height)}" role="group" aria-label="Relations as a graph; the list below says the same in words"><defs>${heads.join("")}</defs>${lines.join("")}${labels.join("")}</svg>`;
  }

  measure(node, room) {
    RelationGraph.pen ??= document.createElement("canvas").getContext("2d");
    const pen = RelationGraph.pen;
    pen.font = `${node.depth ? 400 : 600} 13px ${getComputedStyle(document.body).fontFamily}`;
    const full = this.names.get(node.id);
    node.text = full;
    while (node.text.length > 4 && pen.measureText(node.text).width > room) node.text = `${node.text.slice(0, -2).trimEnd()}…`;
    node.length = pen.measureText(node.text).width;
  }

  label(node) {
    const full = esc(this.names.get(node.id));
    const text = `<text x="${node.x.toFixed(1)}" y="${(node.y + 4.5).toFixed(1)}">${esc(node.text)}</text>`;
    if (!node.depth) return `<g class="node here"><title>${full}</title>${text}</g>`;
    return `<a href="#/dataset/${encodeURIComponent(node.id)}" class="node${node.possible ? " possible" : ""}" aria-label="${full}"><title>${full}</title>${text}</a>`;
  }
}
