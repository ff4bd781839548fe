// A step of an RNN, LSTM or GRU of one unit: its graph with values, and gradients as they go back.
"use strict";

{
  const place = document.getElementById("touch");
  const START = { x: 0.8, h_prev: -0.4, c_prev: 0.6, dh: 1, dc: 0 };
  const WEIGHTS = { Wx: [0.9, 0.7, -0.6, 0.5], Wh: [0.5, -0.8, 0.4, 0.3], b: [0.1, 0.2, -0.1, 0.3] };
  const RULES = {
    "σ": ["σ: d × y (1 − y)"], tanh: ["tanh: d × (1 − y²)"], "×": [say("×: d times the other factor", "×: d × 상대 쪽 값")],
    "+": [say("+: d, as it is", "+: d를 그대로")], "1−": ["1−: −d"],
  };
  const names = { rnn: "RNN", lstm: "LSTM", gru: "GRU" };
  let cell, numbers, back;

  const controls = make("div"), picture = make("div", { class: "wide", tabindex: 0, role: "region",
    "aria-label": say("computation graph", "계산 그래프") });
  const now = make("p", { "aria-live": "polite" });
  place.append(choice("cell", say("Cell", "계층"), names, "rnn", choose), controls, now, picture);

  function choose(name) {
    cell = NUMBERS.graphs[name];
    numbers = Object.fromEntries(["x", ...cell.states.map((s) => `${s}_prev`), ...cell.states.map((s) => `d${s}`)].map((n) => [n, START[n]]));
    cell.gates.forEach((gate, g) => Object.keys(WEIGHTS).forEach((w) => (numbers[`${w}_${gate}`] = WEIGHTS[w][g])));
    const reach = cell.nodes.filter((node) => node.uses.length).length;
    back = reach;
    const row = (n) => slider({ name: n, label: spell(n), min: -3, max: 3, step: 0.05, value: numbers[n] }, (v) => { numbers[n] = v; draw(); });
    const group = (legend, list) => make("fieldset", {}, make("legend", {}, legend), ...list.map(row));
    const states = cell.states;
    controls.replaceChildren(make("div", { class: "sliders dense" },
      group(say("Inputs", "입력"), ["x", ...states.map((s) => `${s}_prev`)]),
      group(say("Gradients from the right", "오른쪽에서 오는 기울기"), states.map((s) => `d${s}`)),
      ...cell.gates.map((gate) => group(cell.gates.length > 1 ? say(`Weights of ${gate}`, `${gate}의 가중치`) : say("Weights", "가중치"),
        Object.keys(WEIGHTS).map((w) => `${w}_${gate}`)))),
      slider({ name: "back", label: say("Backward: nodes passed", "역전파: 지나온 노드"), min: 0, max: reach, step: 1, value: reach, text: String },
        (v) => { back = v; draw(); }));
    draw();
  }

  const spell = (n) => n.startsWith("d") ? `${n}_next` : cell.gates.length > 1 || !n.includes("_h") || n === "h_prev" ? n : n.slice(0, -2);

  function draw() {
    const inputs = Object.fromEntries(["x", ...cell.states.map((s) => `${s}_prev`)].map((n) => [n, [numbers[n]]]));
    const row = (w) => cell.gates.map((gate) => numbers[`${w}_${gate}`]);
    const values = forward(cell, inputs, { Wx: [row("Wx")], Wh: [row("Wh")], b: row("b") });
    const found = backward(cell, values, Object.fromEntries(cell.states.map((s) => [s, [numbers[`d${s}`]]])));
    const order = cell.nodes.map((node, k) => k).filter((k) => cell.nodes[k].uses.length).reverse();
    const passed = new Set(order.slice(0, back)), at = order[back - 1];
    const drawing = make("svg", { viewBox: `-8 -8 ${cell.size[0] + 16} ${cell.size[1] + 16}`, role: "img",
      "aria-label": say("One step: values forward, gradients backward", "한 단계: 순전파 값과 역전파 기울기") });
    drawing.style.minWidth = `${cell.size[0] * 0.72}px`;
    cell.nodes.forEach((node, n) => node.uses.forEach((use, k) => {
      if (!use.path) return;
      drawing.append(make("path", { d: curve(use.path), class: n === at ? "edge live" : "edge" }));
      const [x, y] = use.at, source = cell.nodes[use.from];
      const value = "block" in use ? columns(values[use.from], use.block, 1).flat()[0] : values[use.from][0];
      const title = source.uses.length && node.kind !== "output" && /^[a-z]_?[a-z]?~?$|^tanh_c$/.test(use.name) ? use.name : "";
      if (title) drawing.append(make("text", { x, y: y - 22, class: "name" }, title));
      drawing.append(make("text", { x, y: y - 5, class: "value" }, short(value)));
      if (passed.has(n)) drawing.append(make("text", { x, y: y + 16, class: "gradient" }, short([found.edges[n][k]].flat(2)[0])));
    }));
    cell.nodes.forEach((node, n) => node.at && drawing.append(box(node, n)));
    picture.replaceChildren(drawing);
    tell(at, values, found);

    function box(node, n) {
      const [x, y] = node.at, [w, h] = node.size, lines = [[node.label, "label"]];
      if (node.kind === "Affine") node.uses.forEach((use, k) => {
        const source = cell.nodes[use.from];
        if (source.kind !== "parameter") return;
        lines.push([`${use.name} = ${short(columns(values[use.from], use.block, 1).flat()[0])}`, "value"]);
        lines.push([passed.has(n) ? `d${use.name} = ${short([found.edges[n][k]].flat(2)[0])}` : "", "gradient"]);
      });
      const users = cell.nodes.map((other, k) => k).filter((k) => cell.nodes[k].uses.some((use) => use.from === n));
      if (node.kind === "input" && users.length > 1)
        lines.push([`d${node.name}`, "gradient"], [short(found.nodes[n][0]), "gradient"]);
      if (node.kind === "input" && users.length > 1 && !users.every((k) => passed.has(k))) lines.splice(1);
      const shape = node.round ? make("circle", { cx: x, cy: y, r: w / 2 }) : make("rect", { x: x - w / 2, y: y - h / 2, width: w, height: h, rx: 8 });
      shape.setAttribute("class", `node ${node.kind} ${n === at ? "live" : ""}`);
      return make("g", {}, shape, ...lines.map(([text, kind], k) =>
        make("text", { x, y: y + 5 + 18.5 * (k - (lines.length - 1) / 2), class: kind }, text)));
    }

    function tell(n, values, found) {
      const out = named(cell, values, "output"), weights = named(cell, found.nodes, "parameter"), before = named(cell, found.nodes, "input");
      const result = make("span", {}, say("In the end ", "끝까지 진행하면 "), "h_next = ", number("h_next", out.h_next[0]), ", dx = ", number("dx", before.x[0]),
        ", dh_prev = ", number("dh_prev", before.h_prev[0]), `, d${spell(`Wx_${cell.gates[0]}`)} = `, number("dWx", weights.Wx[0][0]),
        `, d${spell(`b_${cell.gates[0]}`)} = `, number("db", weights.b[0]));
      const node = cell.nodes[n], rule = node && RULES[node.label];
      now.replaceChildren(result, make("br"), node ? say("Now at ", "지금: ") + (rule ? rule[0] : node.kind === "output"
        ? say(`${node.label}: the gradient from the right`, `${node.label}: 오른쪽에서 온 기울기`)
        : say(`${node.label}: to the operand d × Wᵀ, to the weight operandᵀ × d`, `${node.label}: 입력 쪽에는 d × Wᵀ, 가중치 쪽에는 입력ᵀ × d (전치)`))
        : say("Forward only: no gradient is known yet", "순전파만: 아직 기울기는 없습니다"));
    }
  }

  function curve(points) {
    let path = `M${points[0]}`;
    for (let k = 1; k < points.length; k++) {
      const middle = (points[k - 1][0] + points[k][0]) / 2;
      path += ` C${middle},${points[k - 1][1]} ${middle},${points[k][1]} ${points[k]}`;
    }
    return path;
  }

  choose("rnn");
}
