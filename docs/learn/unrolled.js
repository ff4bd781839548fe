// A network over time: the gradient that reaches each step, and where truncated BPTT cuts.
"use strict";

{
  const place = document.getElementById("touch"), H = NUMBERS.unrolled.xs[0].length;
  const set = { cell: "rnn", radius: 0.9, scale: 0, bias: 1, T: 30, block: 60 };
  const RANGE = 8; // powers of ten, up and down
  const bias = slider({ name: "bias", label: say("Bias of the gate f or z", "게이트 f 또는 z의 편향"), min: -3, max: 5, step: 0.25, value: set.bias },
    (v) => { set.bias = v; again(); });
  bias.hidden = true;
  const move = (name, label, min, max, step, text) =>
    slider({ name, label, min, max, step, value: set[name], text }, (v) => { set[name] = v; again(); });
  const picture = make("div"), words = make("p", { "aria-live": "polite" });
  const steps = (v) => say(`${v} steps`, `${v}시각`);
  place.append(
    choice("cell", say("Cell", "계층"), { rnn: "RNN", lstm: "LSTM", gru: "GRU" }, "rnn", (v) => { set.cell = v; bias.hidden = v === "rnn"; again(); }),
    make("div", { class: "sliders" }, make("fieldset", {}, make("legend", {}, say("The network", "신경망")),
      move("radius", say("Spectral radius of Wh", "Wh의 스펙트럼 반지름"), 0.1, 2, 0.05), move("scale", say("Size of the inputs", "입력의 크기"), 0, 3, 0.1), bias),
    make("fieldset", {}, make("legend", {}, say("Time", "시간")),
      move("T", say("Length of the sequence", "시계열의 길이"), 2, 60, 1, steps),
      move("block", say("Truncated BPTT: block of", "시간을 끊은 BPTT: 블록의 크기"), 1, 60, 1,
        (v) => (v < 60 ? steps(v) : say("60: no cut", "60: 끊지 않음"))))), words, picture);

  /** The gradient at each step (arriving at h) of a loss at the last one alone. */
  function run(radius, block) {
    const graph = NUMBERS.graphs[set.cell], { Wx, Wh, b } = NUMBERS.unrolled[set.cell];
    const params = { Wx, Wh: Wh.map((row) => row.map((v) => radius * v)),
      b: b.map((v, k) => (set.cell !== "rnn" && k < H ? set.bias : v)) };
    const xs = NUMBERS.unrolled.xs.slice(0, set.T).map((row) => row.map((v) => set.scale * v));
    const dhs = xs.map((_, t) => new Array(H).fill(t === set.T - 1 ? 1 / Math.sqrt(H) : 0));
    return truncated(graph, xs, params, zeroState(graph, H), dhs, block).arriving;
  }

  const sizes = (arriving) => arriving.map((d) => Math.hypot(norm(d.h), d.c ? norm(d.c) : 0));

  function draw(width) {
    const T = set.T, block = Math.min(set.block, T), own = sizes(run(set.radius, block));
    const left = 46, right = 12, top = 16, height = 250, wide = (width - left - right) / T;
    const x = (t) => left + (t + 0.5) * wide;
    const y = (size) => top + (height / 2) * (1 - Math.max(-RANGE, Math.min(RANGE, Math.log10(size))) / RANGE);
    const drawing = make("svg", { width, height: height + 110, role: "img",
      "aria-label": say("Size of the gradient at each step, on a logarithmic scale", "각 시각에 도달하는 기울기의 크기 (로그 눈금)") });
    for (let power = -RANGE; power <= RANGE; power += 4) drawing.append(
      make("line", { x1: left, x2: width - right, y1: y(10 ** power), y2: y(10 ** power), class: power ? "grid" : "grid one" }),
      make("text", { x: left - 6, y: y(10 ** power) + 4, "text-anchor": "end" }, power ? `10${raised(power)}` : "1"));
    const line = (list, kind) => drawing.append(make("polyline", { class: kind,
      points: list.map((v, t) => [x(t), v > 0 ? y(v) : NaN]).filter((p) => !Number.isNaN(p[1])).map((p) => p.map((c) => c.toFixed(1)).join()).join(" ") }));
    const faint = [[0.5, "vanishes"], [1.5, "explodes"]].map(([radius, kind]) => [sizes(run(radius, T)), kind]);
    faint.forEach(([list, kind]) => line(list, kind));
    drawing.append(
      make("text", { x: left + 6, y: top + 12, class: "explodes" }, say("dashed, above: radius 1.5", "위쪽 파선: 반지름 1.5")),
      make("text", { x: width - right - 6, y: top + height - 6, "text-anchor": "end", class: "vanishes" }, say("dashed, below: radius 0.5", "아래쪽 파선: 반지름 0.5")));
    line(own, "own");
    own.forEach((v, t) => {
      if (v > 0) drawing.append(make("circle", { cx: x(t), cy: y(v), r: Math.min(4, wide / 3), class: "own" }));
      const power = v > 0 ? Math.max(-1, Math.min(1, Math.log10(v) / RANGE)) : -1;
      drawing.append(make("rect", { x: x(t) - wide * 0.4, y: height + 44, width: wide * 0.8, height: 30, rx: 3,
        class: v > 0 ? "box" : "box cut", style: v > 0 ? `fill-opacity: ${0.08 + 0.92 * Math.min(1, 1 + power)}; ${power > 0.05 ? "fill: var(--touch-gradient)" : ""}` : "" }));
      if ((t + 1) % Math.ceil(T / (width / 40)) === 0 || t === 0) drawing.append(make("text", { x: x(t), y: height + 92, "text-anchor": "middle" }, t + 1));
    });
    for (let t = block; t < T; t += block) {
      const at = left + t * wide;
      drawing.append(make("line", { x1: at, x2: at, y1: top, y2: height + 80, class: "scissors" }));
      if (block * wide > 14) drawing.append(make("text", { x: at, y: height + 36, "text-anchor": "middle" }, "✂"));
    }
    drawing.append(make("text", { x: width / 2, y: height + 108, "text-anchor": "middle" }, say("step", "시각")));
    picture.replaceChildren(drawing);
    const first = own[0], reached = own.filter((v) => v > 0).length, before = own[Math.max(0, T - 2)];
    words.replaceChildren(
      say("The loss is measured at the last step. Its gradient has there size ", "손실은 마지막 시각에서만 잽니다. 그 시각의 기울기 크기는 "), number("last", own[T - 1]),
      say(", a step earlier ", ", 한 시각 전에는 "), number("before", before), say(", and at the first step ", ", 첫 시각에서는 "), number("first", first), ". ",
      reached < T ? say(`Truncated BPTT cuts: ${T - reached} of ${T} steps get nothing.`, `역전파를 끊었으므로 ${T}개 가운데 ${T - reached}개 시각에는 기울기가 가지 않습니다.`)
        : first < 1e-3 ? say("It has all but vanished.", "기울기 소실입니다.") : first > 1e3 ? say("It has exploded.", "기울기 폭발입니다.") : say("It arrives.", "기울기가 도달합니다."));
  }

  const raised = (power) => (power < 0 ? "⁻" : "") + [..."" + Math.abs(power)].map((d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d]).join("");
  const again = drawn(picture, draw);
}
