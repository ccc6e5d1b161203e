"use strict";
// The arithmetic: pure functions of a state {points, targets, codes, n, beta, estimator, update, lr, decay}, as
// reference.py defines them. N points and K codes of D = 2 numbers; every mean is over N D numbers.
const Plane = {
  nearest: (points, codes) => points.map(([x, y]) => {
    const d = codes.map(([a, b]) => (x - a) * (x - a) + (y - b) * (y - b));
    return d.indexOf(Math.min(...d)); // of equal distances the lowest index
  }),

  losses({points, targets, codes, beta}) {
    const indices = Plane.nearest(points, codes), counts = codes.map((_, k) => indices.filter(i => i === k).length);
    const mean = to => indices.reduce((sum, k, i) => sum + (codes[k][0] - to[i][0]) ** 2
      + (codes[k][1] - to[i][1]) ** 2, 0) / (2 * points.length);
    const p = counts.filter(c => c > 0).map(c => c / points.length);
    return {
      reconstruction: mean(targets), codebook: mean(points), commitment: beta * mean(points), indices, counts,
      perplexity: Math.exp(-p.reduce((sum, q) => sum + q * Math.log(q), 0)),
    };
  },

  // What stands in for dL/dz where dL/dz_q = g. The rotation trick turns g from the direction of q to that of z and
  // scales it by |q|/|z|, at most 10; where one is zero it leaves g as it is, where they are opposite it does not turn.
  estimators: {
    "straight-through": g => g,
    "none": () => [0, 0],
    "rotation trick": (g, z, q) => {
      const long_z = Math.sqrt(z[0] * z[0] + z[1] * z[1]), long_q = Math.sqrt(q[0] * q[0] + q[1] * q[1]);
      if (long_z === 0 || long_q === 0) return g;
      const a = [z[0] / long_z, z[1] / long_z], b = [q[0] / long_q, q[1] / long_q];
      const scale = Math.min(long_q / long_z, 10);
      const cos = a[0] * b[0] + a[1] * b[1], sin = a[0] * b[1] - a[1] * b[0];
      if (1 + cos < 1e-6) return [scale * g[0], scale * g[1]];
      return [scale * (cos * g[0] + sin * g[1]), scale * (cos * g[1] - sin * g[0])];
    },
  },

  gradients({points, targets, codes, beta, estimator, update}) {
    const scale = 2 / (2 * points.length), indices = Plane.nearest(points, codes);
    const times = (factor, a, b) => [factor * (a[0] - b[0]), factor * (a[1] - b[1])];
    const codebook = codes.map(() => [0, 0]);
    if (update === "codebook loss") indices.forEach((k, i) => {
      codebook[k] = codebook[k].map((sum, d) => sum - scale * (points[i][d] - codes[k][d]));
    });
    const pull = Plane.estimators[estimator];
    return {
      reconstruction: points.map((z, i) => pull(times(scale, codes[indices[i]], targets[i]), z, codes[indices[i]])),
      commitment: points.map((z, i) => times(beta * scale, z, codes[indices[i]])),
      codebook,
    };
  },

  // Gradient descent on points and codes. EMA: n' = d n + (1 - d) c, e' = e + (1 - d)/n' sum(z - e).
  step(state) {
    const {points, codes, lr, decay} = state, by = Plane.gradients(state), indices = Plane.nearest(points, codes);
    const next = {
      ...state,
      points: points.map((z, i) => z.map((x, d) => x - lr * (by.reconstruction[i][d] + by.commitment[i][d]))),
      codes: codes.map((e, k) => e.map((x, d) => x - lr * by.codebook[k][d])),
    };
    if (state.update !== "EMA") return next;
    next.n = state.n.map((n, k) => decay * n + (1 - decay) * indices.filter(i => i === k).length);
    next.codes = codes.map((e, k) => indices.includes(k) ? e.map((x, d) =>
      x + (1 - decay) / next.n[k] * indices.reduce((sum, i, j) => i === k ? sum + points[j][d] - x : sum, 0)) : e);
    return next;
  },

  // The Voronoi cell of each code: the square of half side `reach`, cut by the half-plane of what is nearer to it than
  // to each other code. Of equal codes the first has the cell.
  cells: (codes, reach) => codes.map((e, k) => codes.reduce((cell, f, j) => {
    const out = [f[0] - e[0], f[1] - e[1]], middle = [(f[0] + e[0]) / 2, (f[1] + e[1]) / 2];
    if (!out[0] && !out[1]) return j < k ? [] : cell;
    const side = p => (p[0] - middle[0]) * out[0] + (p[1] - middle[1]) * out[1];
    return cell.flatMap((p, i) => {
      const q = cell[(i + 1) % cell.length], a = side(p), b = side(q), kept = a <= 0 ? [p] : [];
      return a * b < 0 ? [...kept, [p[0] + a / (a - b) * (q[0] - p[0]), p[1] + a / (a - b) * (q[1] - p[1])]] : kept;
    });
  }, [[-reach, -reach], [reach, -reach], [reach, reach], [-reach, reach]])),
};

// The page: one drawing, made by plane.py, whose paths and handles follow the state.
{
  const root = document.querySelector(".plane"), svg = root.querySelector(".stage"), form = root.querySelector("form");
  const start = JSON.parse(root.querySelector("script").textContent), names = form.elements;
  const side = 400, unit = 125, reach = side / 2 / unit; // the drawing is 400 across, zero in its middle, and 1 is 125
  const long = {points: 10, codes: 3}; // steps that an arrow is long: a code is pulled by all the points of its cell
  const handles = {points: svg.querySelectorAll(".point"), codes: svg.querySelectorAll(".code")};
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const held = new Map(); // what each finger or mouse holds: {kind, i, dx, dy}
  let state, steps, moved, trail, timer, selected = {kind: "points", i: 0};

  const drawn = ([x, y]) => [side / 2 + unit * x, side / 2 - unit * y];
  const xy = ([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`;
  const line = points => points.length ? `M${points.map(xy).join("L")}` : "";
  const closed = points => points.length ? line(points) + "Z" : "";
  const within = x => Math.max(-reach, Math.min(reach, x));
  const apart = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);

  function arrow(from, [x, y]) { // from the rim of its mark, so that a short one shows
    const length = unit * Math.hypot(x, y), rim = 8 * unit / length, [c, d] = drawn(from);
    if (length < 3) return "";
    const a = c + rim * x, b = d - rim * y, tip = [a + unit * x, b - unit * y], head = Math.min(9, 0.6 * length) * unit / length;
    const u = head * x, v = -head * y, foot = [tip[0] - u, tip[1] - v];
    const left = [foot[0] + 0.42 * v, foot[1] - 0.42 * u], right = [foot[0] - 0.42 * v, foot[1] + 0.42 * u];
    return line([[a, b], foot]) + closed([left, tip, right]);
  }

  function picture(loss, by, next) {
    const {points, targets, codes} = state, cells = Plane.cells(codes, reach).map(cell => closed(cell.map(drawn)));
    const down = g => g.map(x => -state.lr * long.points * x);
    const n = selected.i, code = selected.kind === "codes" ? n : loss.indices[n];
    const own = points.map((_, i) => i).filter(i => selected.kind === "codes" ? loss.indices[i] === n : i === n);
    return {
      here: cells[code],
      cells: cells.join(""),
      links: points.map((z, i) => line([z, codes[loss.indices[i]]].map(drawn))).join(""),
      trail: ["points", "codes"].flatMap(kind => state[kind].map((now, i) =>
        trail.length ? line([...trail.map(past => past[kind][i]), now].map(drawn)) : "")).join(""),
      miss: own.map(i => line([codes[code], targets[i]].map(drawn))).join(""),
      commitment: points.map((z, i) => arrow(z, down(by.commitment[i]))).join(""),
      reconstruction: points.map((z, i) => arrow(z, down(by.reconstruction[i]))).join(""),
      codebook: codes.map((e, k) => arrow(e, e.map((x, d) => long.codes * (next.codes[k][d] - x)))).join(""),
    };
  }

  function sentence(kind, i, loss, by) {
    const at = state[kind][i], place = `at ${at.map(x => x.toFixed(2)).join(", ").replaceAll("-", "−")}`;
    if (kind === "codes") {
      const own = loss.counts[i], mover = {"codebook loss": "the codebook loss", EMA: "the average"}[state.update];
      const rule = mover ? `${mover} moves it towards ${own > 1 ? "their mean" : "that point"}` : "it is frozen";
      return `Code ${i + 1} ${place}: ` + (!own ? "no point is nearest to it, so nothing moves it."
        : `the nearest code of ${own} point${own > 1 ? "s" : ""}; ${rule}.`);
    }
    const g = by.reconstruction[i], code = state.codes[loss.indices[i]], way = [code[0] - at[0], code[1] - at[1]];
    const cos = -(g[0] * way[0] + g[1] * way[1]) / (Math.hypot(...g) * Math.hypot(...way));
    const turn = Number.isNaN(cos) ? "" : `, ${Math.round(Math.acos(Math.max(-1, Math.min(1, cos))) * 180 / Math.PI)}° off the way to its code`;
    return `Point ${i + 1} ${place}: its code is ${loss.indices[i] + 1}. Reconstruction ` +
      (Math.hypot(...g) ? `pulls it by ${Math.hypot(...g).toFixed(3)}${turn}` : "does not reach it") +
      `; commitment ${state.beta ? `by ${Math.hypot(...by.commitment[i]).toFixed(3)}, straight to its code` : "does not"}.`;
  }

  function draw() {
    const loss = Plane.losses(state), by = Plane.gradients(state), next = Plane.step(state);
    for (const [name, d] of Object.entries(picture(loss, by, next))) svg.querySelector(`.${name}`).setAttribute("d", d);
    for (const kind of ["points", "codes"]) handles[kind].forEach((handle, i) => {
      const at = state[kind][i], inside = at.map(within);
      handle.setAttribute("transform", `translate(${xy(drawn(inside))})`);
      handle.setAttribute("aria-valuenow", at[0].toFixed(2));
      handle.setAttribute("aria-valuetext", sentence(kind, i, loss, by));
      handle.classList.toggle("outside", apart(at, inside) > 0);
      handle.classList.toggle("selected", selected.kind === kind && selected.i === i);
      handle.classList.toggle("idle", kind === "codes" && !loss.counts[i]);
    });
    const used = loss.counts.filter(c => c).length, gone = svg.querySelectorAll(".outside").length;
    const shown = {
      step: steps, reconstruction: loss.reconstruction.toFixed(4), commitment: loss.commitment.toFixed(4),
      codebook: loss.codebook.toFixed(4) + (state.update === "codebook loss" ? "" : " (not used)"),
      perplexity: `${loss.perplexity.toFixed(2)}, ${used} of ${state.codes.length} codes used`,
      moved: moved ? `points ${moved[0].toFixed(4)}, codes ${moved[1].toFixed(4)}` : "–",
      outside: gone ? `${gone}, drawn at the edge` : "none",
    };
    for (const [name, text] of Object.entries(shown)) root.querySelector(`[data-is=${name}]`).textContent = text;
    root.querySelector(".said").textContent = sentence(selected.kind, selected.i, loss, by);
    names.shown.value = state.beta.toFixed(2);
    names.play.textContent = timer ? "Pause" : "Play";
    root.querySelector("dl").setAttribute("aria-live", timer || held.size ? "off" : "polite");
  }

  function forward() {
    const next = Plane.step(state);
    for (const {kind, i} of held.values()) next[kind][i] = state[kind][i];
    moved = ["points", "codes"].map(kind =>
      state[kind].reduce((sum, at, i) => sum + apart(at, next[kind][i]), 0) / state[kind].length);
    trail = [...trail.slice(-79), state];
    [state, steps] = [next, steps + 1];
    draw();
  }

  function play(on) {
    clearInterval(timer);
    timer = on ? setInterval(forward, calm ? 1000 : 120) : null;
    draw();
  }

  function rules() {
    return {beta: +names.beta.value, estimator: names.estimator.value, update: names.update.value};
  }

  function reset() {
    [state, steps, moved, trail] = [{...start, ...rules()}, 0, null, []];
    play(false);
  }

  function move(kind, i, to) {
    state = {...state, [kind]: state[kind].map((at, j) => i === j ? to.map(within) : at)};
    [selected, trail] = [{kind, i}, []];
    draw();
  }

  function pointed(event) {
    const box = svg.getBoundingClientRect(), scale = side / box.width / unit;
    return [(event.clientX - box.left) * scale - reach, reach - (event.clientY - box.top) * scale];
  }

  for (const kind of ["points", "codes"]) handles[kind].forEach((handle, i) => {
    const role = {role: "slider", tabindex: 0, "aria-label": `${kind === "codes" ? "Code" : "Point"} ${i + 1}`,
      "aria-roledescription": "place", "aria-valuemin": -reach, "aria-valuemax": reach};
    for (const [name, value] of Object.entries(role)) handle.setAttribute(name, value);
    handle.addEventListener("focus", () => { selected = {kind, i}; draw(); });
    handle.addEventListener("keydown", event => {
      const by = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]}[event.key];
      if (!by) return;
      event.preventDefault();
      move(kind, i, state[kind][i].map((x, d) => x + by[d] * (event.shiftKey ? 0.25 : 0.05)));
    });
    handle.addEventListener("pointerdown", event => {
      // Where the circles of two overlap, the nearer one is meant, not the one painted last.
      const at = pointed(event), all = ["codes", "points"].flatMap(kind => state[kind].map((p, i) => ({kind, i, p})));
      const near = all.reduce((a, b) => apart(b.p.map(within), at) <= apart(a.p.map(within), at) ? b : a);
      const from = near.p.map(within), meant = handles[near.kind][near.i];
      held.set(event.pointerId, {...near, dx: from[0] - at[0], dy: from[1] - at[1]});
      svg.setPointerCapture(event.pointerId);
      event.preventDefault();
      meant.focus({preventScroll: true});
    });
  });
  svg.addEventListener("pointermove", event => {
    const thing = held.get(event.pointerId), at = pointed(event);
    if (thing) move(thing.kind, thing.i, [at[0] + thing.dx, at[1] + thing.dy]);
  });
  for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, event => {
    if (held.delete(event.pointerId)) draw();
  });
  form.addEventListener("input", () => { state = {...state, ...rules()}; draw(); });
  names.step.addEventListener("click", () => { play(false); forward(); });
  names.play.addEventListener("click", () => play(!timer));
  names.reset.addEventListener("click", reset);
  svg.setAttribute("role", "group");
  root.classList.add("alive");
  reset();
}
