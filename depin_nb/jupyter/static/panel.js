// The live panel of one run. Python sends what to show as `status` (see view.py), with every text final and every length between 0 and 1;
// this only draws. A click goes two ways, whichever is heard first: over the widget's comm to the kernel, and to the hub through the
// Jupyter server, which works while the kernel is busy or gone.

const SPAN_ALPHA = { work: 1, send: 0.45, wait: 0.16, lost: 1 };
const UNHEARD_MS = 8000;

function el(tag, className = "", ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function badge(simulated) {
  return simulated ? [" ", el("span", "depin-badge", "simulated")] : [];
}

// ---- the way to the hub that doesn't need the kernel

function serverSettings() {
  try {
    const page = JSON.parse(document.getElementById("jupyter-config-data").textContent);
    return { base: new URL(page.baseUrl || "/", window.location.href).href.replace(/\/?$/, "/"), token: page.token || "" };
  } catch {
    return null; // not a page of Jupyter's own: the comm alone has to do
  }
}

async function postControl(run, action, value, signal) {
  const settings = serverSettings();
  if (!settings) return false;
  const headers = { "Content-Type": "application/json" };
  const xsrf = document.cookie.match(/(?:^|;\s*)_xsrf=([^;]*)/);
  if (xsrf) headers["X-XSRFToken"] = decodeURIComponent(xsrf[1]);
  if (settings.token) headers.Authorization = `token ${settings.token}`;
  try {
    const body = JSON.stringify({ run, action, value });
    const answer = await fetch(`${settings.base}depin-nb/api/control`, { method: "POST", headers, body, signal, credentials: "same-origin" });
    return answer.ok;
  } catch {
    return false;
  }
}

// ---- drawing

function prepared(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width || !height) return null;
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

function colours(root) {
  const style = getComputedStyle(root);
  const read = (name) => style.getPropertyValue(name).trim();
  return { ink: style.color, accent: read("--depin-accent"), bad: read("--depin-bad"), font: style.fontFamily };
}

function drawCurve(canvas, curve, colour) {
  const frame = prepared(canvas);
  if (!frame) return;
  const { pen, width, height } = frame;
  const left = 46, top = 8, wide = width - left - 8, high = height - top - 30, base = top + high;
  pen.font = `10.5px ${colour.font}`;
  pen.fillStyle = pen.strokeStyle = colour.ink;
  const text = (words, x, y, align, alpha = 0.7) => {
    pen.globalAlpha = alpha;
    pen.textAlign = align;
    pen.fillText(words, x, y);
  };
  const rule = (y) => {
    pen.globalAlpha = 0.12;
    pen.fillRect(left, Math.round(y), wide, 1);
  };
  if (!curve) {
    rule(base);
    text("the first loss is still to come", left + wide / 2, top + high / 2, "center");
    return;
  }
  for (const [place, label] of curve.y_ticks) {
    rule(base - place * high);
    text(label, left - 6, base - place * high + 3.5, "right");
  }
  for (const [place, label] of curve.x_ticks) {
    text(label, left + place * wide, base + 13, place > 0.95 ? "right" : place < 0.05 ? "left" : "center");
  }
  text("iteration", left + wide / 2, height - 4, "center");
  pen.save();
  pen.translate(10, top + high / 2);
  pen.rotate(-Math.PI / 2);
  text(curve.log ? "loss, log scale" : "loss", 0, 0, "center");
  pen.restore();
  pen.globalAlpha = 1;
  pen.strokeStyle = pen.fillStyle = colour.accent;
  pen.lineWidth = 1.8;
  pen.lineJoin = "round";
  pen.beginPath();
  for (const [x, y] of curve.points) pen.lineTo(left + x * wide, base - y * high);
  pen.stroke();
  const [x, y] = curve.points[curve.points.length - 1];
  pen.beginPath();
  pen.arc(left + x * wide, base - y * high, 3, 0, 2 * Math.PI);
  pen.fill();
}

function drawLane(canvas, spans, colour) {
  const frame = prepared(canvas);
  if (!frame) return;
  const { pen, width, height } = frame;
  for (const [from, to, state] of spans) {
    pen.globalAlpha = SPAN_ALPHA[state] ?? 0;
    pen.fillStyle = state === "lost" ? colour.bad : state === "wait" ? colour.ink : colour.accent;
    pen.fillRect(from * width, 0, Math.max(1, (to - from) * width), height);
  }
}

// ---- the page's parts

function statList(place, stats) {
  const shape = stats.map((s) => s.label).join("|");
  if (place.dataset.shape !== shape) {
    place.dataset.shape = shape;
    place.replaceChildren(...stats.flatMap((s) => [el("dt", "", s.label), el("dd"), el("small")]));
  }
  stats.forEach((s, i) => {
    put(place.children[i * 3 + 1], s.value);
    put(place.children[i * 3 + 2], s.tag);
  });
}

function build(root) {
  const part = {
    state: el("span", "depin-state"), run: el("b"), title: el("span"), sim: el("span"), plan: el("div", "depin-plan"),
    done: el("i"), percent: el("b"), progress: el("span"), times: el("span"), learning: el("div", "depin-row"),
    curve: el("canvas", "depin-curve"), money: el("dl", "depin-stats"), tokens: el("dl", "depin-stats"),
    spent: el("i"), held: el("i", "depin-held"), mark: el("i", "depin-mark"), cap: el("small"), window: el("span"),
    rows: el("tbody"), details: el("div"), notes: el("ul", "depin-notes"), said: el("div", "depin-said"),
    pause: el("button", "", "Pause"), stop: el("button", "", "Stop"), budget: el("input"), raise: el("button", "", "Set budget"),
  };
  part.state.setAttribute("role", "status");
  part.state.setAttribute("aria-live", "polite");
  part.said.setAttribute("aria-live", "polite");
  part.curve.setAttribute("role", "img");
  part.pause.type = part.stop.type = "button";
  part.pause.title = "No new leases go out; those that are out finish";
  part.stop.title = "Ends the run with the weights of its last merge";
  part.raise.type = "submit";
  part.budget.type = "text";
  part.budget.inputMode = "decimal";
  part.budget.placeholder = "$0.20";
  part.budget.setAttribute("aria-label", "New budget, such as $0.20");
  part.bar = el("div", "depin-bar", part.done);
  part.bar.setAttribute("role", "progressbar");
  part.bar.setAttribute("aria-label", "progress");
  part.budgetBar = el("div", "depin-bar", part.spent, part.held, part.mark);
  part.budgetBar.title = "solid: spent, pale: reserved for leases that are out, mark: warning at 80 %";
  part.form = el("form", "", part.budget, part.raise);
  const keys = Object.keys(SPAN_ALPHA).flatMap((state) => [el("i", `depin-key depin-${state}`), state]);
  const heads = ["Iterations", "Samples/s"].map((words) => el("th", "", words));
  const paid = [["Earned", "metered"], ["Paid", "settled"]].map(([words, tag]) => el("th", "", words, el("br"), tag));
  const head = el("tr", "", el("th", "", "Worker"), el("th", "depin-l depin-wide", part.window, ...keys), ...heads, ...paid);
  root.append(
    el("div", "depin-head", part.state, part.run, part.title, part.sim),
    part.plan,
    part.bar,
    el("div", "depin-row", el("span", "", part.percent, " ", part.progress), part.times),
    el("div", "depin-body",
      el("div", "depin-learn", part.learning, part.curve),
      el("div", "depin-afford", part.money, el("div", "depin-cap", part.budgetBar, part.cap), part.tokens,
        el("div", "depin-controls", part.pause, part.stop, part.form, part.said))),
    el("div", "depin-scroll", el("table", "depin-table", el("thead", "", head), part.rows)),
    el("div", "depin-foot", part.details, part.notes),
  );
  return part;
}

function workerRows(body, workers) {
  const shape = workers.map((w) => `${w.name}|${w.simulated}`).join("/");
  if (body.dataset.shape !== shape) {
    body.dataset.shape = shape;
    body.replaceChildren(...workers.map((w) => {
      const kind = w.name.startsWith(w.kind) ? [] : [" ", el("small", "", w.kind)];
      const lane = el("canvas", "depin-lane");
      lane.setAttribute("aria-hidden", "true");
      return el("tr", "", el("td", "", w.name, ...kind, ...badge(w.simulated)), el("td", "", lane), el("td"), el("td"), el("td"), el("td"));
    }));
  }
  workers.forEach((w, i) => {
    const cells = body.children[i].children;
    cells[0].title = [w.kind, w.state, w.price && `${w.price} quoted`, w.wallet].filter(Boolean).join(" · ");
    [w.iterations, w.rate, w.earned, w.paid].forEach((text, k) => put(cells[k + 2], text));
  });
}

function show(part, v, pressed) {
  const stopping = pressed === "stop" && v.active;
  put(part.state, stopping ? "stopping…" : v.label);
  part.state.className = `depin-state depin-${v.tone}`;
  put(part.run, v.run_id);
  put(part.title, v.title);
  part.sim.replaceChildren(...badge(v.simulated));
  put(part.plan, v.headline);
  part.plan.title = v.plan === v.headline ? "" : v.plan;
  part.done.style.width = `${(v.fraction || 0) * 100}%`;
  part.bar.setAttribute("aria-valuetext", v.percent || "not known");
  put(part.percent, v.percent);
  put(part.progress, v.progress);
  part.times.replaceChildren(...v.times.flatMap((s, i) => [i ? "\u2003" : "", `${s.value} ${s.label} `, el("small", "", s.tag)]));
  part.learning.replaceChildren(...v.learning.map((s) => el("span", "", `${s.label} `, el("b", "", s.value), " ", el("small", "", s.tag))));
  part.curve.setAttribute("aria-label", `loss over iterations, now ${v.learning[0].value}`);
  statList(part.money, v.money);
  statList(part.tokens, v.tokens);
  part.budgetBar.hidden = !v.bar;
  put(part.cap, v.bar ? v.bar.text : "no budget set");
  if (v.bar) {
    part.spent.className = v.bar.warn ? "depin-over" : "";
    part.spent.style.width = `${v.bar.spent * 100}%`;
    part.held.style.left = `${v.bar.spent * 100}%`;
    part.held.style.width = `${v.bar.reserved * 100}%`;
    part.mark.style.left = `${v.bar.mark * 100}%`;
  }
  put(part.window, v.window);
  workerRows(part.rows, v.workers);
  part.details.replaceChildren(...v.details.filter(([, text]) => text).map(([name, text]) => el("span", "", `${name} ${text}`)));
  part.notes.replaceChildren(...v.notices.map((words) => el("li", "", words)));
  const paused = v.state === "paused";
  put(part.pause, paused ? "Resume" : "Pause");
  for (const node of [part.pause, part.stop, part.budget, part.raise]) node.disabled = !v.active || stopping;
}

let models = 0;

export default () => {
  // one identity for each time the module is made for a model, so that the kernel counts a click once however it arrives
  const sender = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}-${++models}`;
  let seq = 0;
  const send = (model, action, value = null) => model.send({ from: sender, seq: ++seq, action, value });

  return {
    initialize({ model }) {
      send(model, "hello");
    },

    render({ model, el: host, signal: given }) {
      const ended = new AbortController();
      const signal = ended.signal;
      given?.addEventListener("abort", () => ended.abort(), { signal });
      const root = el("div", "depin depin-panel");
      root.setAttribute("role", "region");
      root.setAttribute("aria-label", "depin run");
      host.append(root);
      const part = build(root);
      let frame = 0, pressed = "", cap = "", timer = 0, posts = Promise.resolve();

      const draw = () => {
        frame = 0;
        const v = model.get("status");
        if (!v || !v.run_id) return;
        const done = { pause: v.state === "paused", resume: v.state === "running", budget: v.bar?.cap !== cap };
        if (done[pressed] || !v.active) {
          pressed = "";
          clearTimeout(timer);
          put(part.said, "");
        }
        show(part, v, pressed);
        const colour = colours(root);
        drawCurve(part.curve, v.curve, colour);
        v.workers.forEach((w, i) => drawLane(part.rows.children[i].querySelector("canvas"), w.spans, colour));
      };
      const soon = () => {
        frame ||= requestAnimationFrame(draw);
      };
      const press = (action, words, value = null) => {
        const { run_id: run } = model.get("status");
        pressed = action;
        put(part.said, words);
        clearTimeout(timer);
        timer = setTimeout(() => {
          put(part.said, "Not confirmed yet. The kernel's Interrupt button always works.");
        }, UNHEARD_MS);
        send(model, action, value);
        posts = posts.then(() => postControl(run, action, value, signal)); // in order, so that the last click wins
        soon();
      };

      part.pause.addEventListener("click", () => {
        const paused = model.get("status").state === "paused";
        press(paused ? "resume" : "pause", paused ? "resuming…" : "pausing after the leases that are out…");
      }, { signal });
      part.stop.addEventListener("click", () => press("stop", "stopping…"), { signal });
      part.form.addEventListener("submit", (event) => {
        event.preventDefault();
        const text = part.budget.value.trim();
        if (!/^\$?\s*(\d+(\.\d*)?|\.\d+)$/.test(text)) {
          put(part.said, "Write the new budget like $0.20.");
          part.budget.focus();
          return;
        }
        cap = model.get("status").bar?.cap;
        press("budget", `asking for a budget of ${text}…`, text);
        part.budget.value = "";
      }, { signal });
      // Jupyter's own keyboard shortcuts must not take what is typed here
      part.form.addEventListener("keydown", (event) => event.stopPropagation(), { signal });

      const resized = new ResizeObserver(soon);
      resized.observe(root);
      model.on("change:status", soon);
      soon();
      signal.addEventListener("abort", () => {
        cancelAnimationFrame(frame);
        clearTimeout(timer);
        resized.disconnect();
        model.off("change:status", soon);
      });
      return () => ended.abort();
    },
  };
};
