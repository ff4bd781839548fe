// Truncated BPTT as a film: forward through a block, back through it, weights updated, the next block.
"use strict";

{
  const place = document.getElementById("touch"), { xs, dhs, Wx, Wh, b } = NUMBERS.film, graph = NUMBERS.graphs.rnn;
  const set = { block: 4, rate: 0.1, frame: 0 }, T = xs.length;
  let frames, timer = 0;
  const picture = make("div"), words = make("p", { "aria-live": "polite" });
  const moved = (name) => (v) => { set[name] = v; film(); };
  const button = (text, go) => make("button", { type: "button", class: "md-button", onclick: go }, text);
  const play = button(say("Play", "재생"), toggle);
  const by = (k) => () => { stop(); setSlider(place, "frame", Math.max(0, Math.min(frames.length - 1, set.frame + k))); };
  place.append(make("div", { class: "sliders" },
    slider({ name: "block", label: say("Block", "블록의 크기"), min: 1, max: T, step: 1, value: set.block, text: (v) => say(`${v} steps`, `${v}시각`) }, moved("block")),
    slider({ name: "rate", label: say("Learning rate", "학습률"), min: 0, max: 0.5, step: 0.01, value: set.rate }, moved("rate")),
    slider({ name: "frame", label: say("Frame", "장면"), min: 0, max: 1, step: 1, value: 0, text: (v) => String(v + 1) }, (v) => { set.frame = v; again(); })),
  make("div", { class: "buttons" }, button(say("Back", "이전"), by(-1)), play, button(say("Step", "다음"), by(1))), words, picture);

  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = say("Play", "재생");
  }

  function toggle() {
    if (timer) return stop();
    if (set.frame === frames.length - 1) setSlider(place, "frame", 0);
    play.textContent = say("Pause", "멈춤");
    timer = setInterval(() => set.frame < frames.length - 1 ? setSlider(place, "frame", set.frame + 1) : stop(), 700);
  }

  /** All frames: what has happened up to each, and its numbers. */
  function film() {
    let params = { Wx, Wh, b }, state = zeroState(graph, Wh.length);
    frames = [];
    for (let start = 0; start < T; start += set.block) {
      const end = Math.min(T, start + set.block), steps = forwardSteps(graph, xs.slice(start, end), params, state);
      const h = steps.map((values) => named(graph, values, "output").h_next);
      const frame = (kind, t, more) => frames.push({ kind, t, start, end, Wh: params.Wh, ...more });
      for (let t = start; t < end; t++) frame("forward", t, { h: norm(h[t - start]), dWh: 0 });
      for (let t = end - 1; t >= start; t--) {
        const { arriving, grads } = backwardSteps(graph, steps.slice(t - start), dhs.slice(t, end));
        frame("backward", t, { dh: arriving.map(({ h }) => norm(h)), dWh: norm(grads.Wh), grads });
      }
      const { grads } = frames.at(-1), less = (a, d) => a.map((v, k) => Array.isArray(v) ? less(v, d[k]) : v - set.rate * d[k]);
      params = Object.fromEntries(Object.keys(params).map((name) => [name, less(params[name], grads[name])]));
      frame("update", end - 1, { dWh: norm(grads.Wh), Wh: params.Wh });
      state = { h_prev: h.at(-1) };
    }
    if (place.querySelector('input[name="frame"]').max != frames.length - 1) setSlider(place, "frame", Math.min(set.frame, frames.length - 1), frames.length - 1);
    else again();
  }

  function draw(width) {
    if (!frames) return;
    const now = frames[set.frame], wide = (width - 8) / T, top = 46, side = Math.min(44, wide * 0.72);
    const drawing = make("svg", { width, height: 190, role: "img", "aria-label": say("an RNN over time, in blocks", "블록으로 나눈 시계열 위의 RNN") });
    const x = (t) => 4 + (t + 0.5) * wide, y = top + side / 2;
    for (let t = 0; t < T; t++) {
      const within = t >= now.start && t < now.end;
      const done = t < now.start || now.kind === "update" || (within && (now.kind === "forward" ? t <= now.t : true));
      const back = within && now.kind === "backward" && t >= now.t, live = within && t === now.t && now.kind !== "update";
      const kind = `box ${done ? "done" : ""} ${back ? "back" : ""} ${live ? "live" : ""}`;
      drawing.append(make("rect", { x: x(t) - side / 2, y: top, width: side, height: side, rx: 4, class: kind }),
        make("text", { x: x(t), y: y + 5, "text-anchor": "middle" }, t + 1));
      if (t && done) drawing.append(make("line", { x1: x(t - 1) + side / 2, x2: x(t) - side / 2, y1: y - 5, y2: y - 5, class: "ahead" }));
      if (back && t < now.end - 1) drawing.append(make("line", { x1: x(t) + side / 2, x2: x(t + 1) - side / 2, y1: y + 7, y2: y + 7, class: "behind" }));
      if (back) {
        const size = now.dh[t - now.t], tall = Math.min(70, 16 * size);
        drawing.append(make("rect", { x: x(t) - side / 4, y: top + side + 8, width: side / 2, height: tall, class: "size" }));
        if (wide > 25) drawing.append(make("text", { x: x(t), y: top + side + 22 + tall, "text-anchor": "middle", class: "gradient" }, short(size)));
      }
      if (t && t % set.block === 0) drawing.append(
        make("line", { x1: x(t) - wide / 2, x2: x(t) - wide / 2, y1: 26, y2: top + side + 10, class: "scissors" }),
        make("text", { x: x(t) - wide / 2, y: 20, "text-anchor": "middle" }, "✂"));
    }
    picture.replaceChildren(drawing);
    const block = Math.floor(now.start / set.block) + 1;
    const event = {
      forward: say(`Block ${block}, forward: step ${now.t + 1} computes its hidden state from the one before`, `블록 ${block}, 순전파: 시각 ${now.t + 1}에서 이전 은닉 상태로 새 은닉 상태를 계산합니다`),
      backward: say(`Block ${block}, backward: step ${now.t + 1} gets its gradient and adds to dWh`, `블록 ${block}, 역전파: 시각 ${now.t + 1}에 기울기가 도착하고 dWh에 더해집니다`),
      update: say(`Block ${block}: the weights are updated. The hidden state goes on, the gradient does not`, `블록 ${block}: 가중치를 갱신합니다. 은닉 상태는 다음 블록으로 이어지고, 기울기는 이어지지 않습니다`),
    }[now.kind];
    words.replaceChildren(make("strong", {}, event), ". ‖dWh‖ = ", number("dWh", now.dWh), ", Wh[0][0] = ", number("Wh", now.Wh[0][0], now.Wh[0][0].toFixed(4).replace("-", "−")),
      ", ‖Wh‖ = ", number("size", norm(now.Wh)), ".");
  }

  const again = drawn(picture, draw);
  film();
}
