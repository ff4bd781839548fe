// Gates as valves: one by hand, then those of a language model over a sentence.
"use strict";

{
  const hand = document.getElementById("valve");
  let opening = 0.7;
  const single = make("div"), flows = make("p");
  hand.append(slider({ name: "opening", label: say("How far the gate is open", "게이트가 열린 정도"), min: 0, max: 1, step: 0.05, value: opening },
    (v) => { opening = v; againValve(); }), flows, single);
  const againValve = drawn(single, (width) => {
    const middle = width / 2;
    single.replaceChildren(make("svg", { width, height: 100, role: "img", "aria-label": say("a valve on a water pipe", "수도관의 밸브") },
      pipe(8, 75, middle - 8, 1), pipe(middle, 75, middle - 8, opening), valve(middle, 75, opening, short(opening))));
    flows.replaceChildren(say("Of water 1.00 there passes ", "1.00의 물 가운데 흐르는 양: "), number("passes", opening), ` (${Math.round(100 * opening)} %).`);
  });

  const place = document.getElementById("touch"), model = NUMBERS.model, graph = NUMBERS.graphs.lstm;
  const H = model.Wh.length, characters = [...model.characters];
  const set = { sentence: model.sentence, t: 5, unit: 0 };
  let steps;
  const strip = make("div", { class: "strip" }), picture = make("div", { class: "wide", tabindex: 0, role: "region", "aria-label": say("the gates as valves", "밸브로 그린 게이트") });
  const words = make("p", { "aria-live": "polite" });
  const field = make("input", { type: "text", maxlength: 80, value: set.sentence, name: "sentence", oninput: () => read(field.value) });
  const at = slider({ name: "t", label: say("Position in the sentence", "문장에서의 위치"), min: 0, max: 1, step: 1, value: 0, text: String }, (v) => { set.t = v; draw(); });
  const unit = slider({ name: "unit", label: say("Unit", "뉴런"), min: 1, max: H, step: 1, value: 1, text: String }, (v) => { set.unit = v - 1; draw(); });
  const play = make("button", { type: "button", class: "md-button", onclick: toggle }, say("Play", "재생"));
  let timer = 0;
  place.append(make("label", { class: "typed" }, make("span", {}, say("Sentence (type your own)", "문장 (직접 써 보세요, 영어로)")), field),
    make("div", { class: "sliders" }, at, unit), play, words, picture, strip);

  function toggle() {
    if (timer) { clearInterval(timer); timer = 0; }
    else timer = setInterval(() => setSlider(place, "t", (set.t + 1) % steps.length), 600);
    play.textContent = timer ? say("Pause", "멈춤") : say("Play", "재생");
  }

  function read(sentence) {
    const ids = [...sentence].map((letter) => characters.indexOf(letter)).filter((k) => k >= 0);
    if (!ids.length) return;
    set.sentence = ids.map((k) => characters[k]).join("");
    steps = forwardSteps(graph, ids.map((k) => model.embedding[k]), model, zeroState(graph, H));
    setSlider(place, "t", Math.min(set.t, ids.length - 1), ids.length - 1);
  }

  const inside = (values, name) => values[graph.nodes.findIndex((node) => node.name === name && node.kind !== "Affine")];

  function draw() {
    const values = steps[set.t], unit = set.unit, of = (name) => inside(values, name)[unit];
    const [f, g, i, o, before] = ["f", "g", "i", "o", "c_prev"].map(of);
    const c = named(graph, values, "output").c_next[unit], h = named(graph, values, "output").h_next[unit];
    const percent = (v) => `${short(v)} (${Math.round(100 * v)} %)`;
    const text = (x, y, label, anchor = "middle") => make("text", { x, y, "text-anchor": anchor }, label);
    const c_ = (v) => v / 2; // memory cells reach beyond 1: half as thick
    picture.replaceChildren(make("svg", { viewBox: "0 0 720 270", style: "min-width: 600px", role: "img",
      "aria-label": `f ${short(f)}, i ${short(i)}, o ${short(o)}` },
    pipe(90, 80, 110, c_(before)), pipe(200, 80, 140, c_(f * before)), pipe(90, 200, 110, c_(g)), pipe(200, 200, 123, c_(i * g)),
    pipe(340, 97, 86, c_(i * g), true), pipe(340, 80, 150, c_(c)), pipe(490, 80, 60, Math.tanh(c)), pipe(550, 80, 90, h),
    make("circle", { cx: 340, cy: 80, r: 15, class: "node" }), text(340, 86, "+"),
    make("rect", { x: 466, y: 64, width: 48, height: 32, rx: 6, class: "node operation" }), text(490, 85, "tanh"),
    valve(200, 80, f, `f = ${percent(f)}`), valve(200, 200, i, `i = ${percent(i)}`), valve(550, 80, o, `o = ${percent(o)}`),
    text(84, 76, "c_prev", "end"), text(84, 94, short(before), "end"), text(84, 196, "g", "end"), text(84, 214, short(g), "end"),
    text(415, 50, `c = ${short(c)}`), text(646, 76, "h", "start"), text(646, 94, short(h), "start"),
    text(360, 258, say("blue: above zero; orange: below; c and g are drawn half as thick", "파랑: 양수, 주황: 음수. c와 g는 절반 두께로 그렸습니다"))));
    const letter = (k) => (set.sentence[k] === " " ? "␣" : set.sentence[k]);
    words.replaceChildren(say("Read: ", "읽은 문자: "), make("strong", {}, letter(set.t)), ". c = f × c_prev + i × g = ",
      number("c", c), ", h = o × tanh(c) = ", number("h", h), ", f = ", number("f", f), ". ", say("Next, thinks the model: ", "모델이 예측하는 다음 문자: "), guesses(values));
    strip.replaceChildren(...steps.map((values, k) => {
      const bars = ["f", "i", "o"].map((name) => make("span", { class: `bar ${name}`, style: `height: ${18 * inside(values, name)[unit]}px` }));
      return make("button", { type: "button", class: k === set.t ? "letter now" : "letter", tabindex: -1, onclick: () => setSlider(place, "t", k),
        "aria-label": `${letter(k)} ${k}` }, make("span", { class: "bars" }, ...bars), make("span", {}, letter(k)));
    }));
  }

  function guesses(values) {
    const scores = times(named(graph, values, "output").h_next, model.W_out).map((v, k) => v + model.b_out[k]);
    const most = Math.max(...scores), sum = scores.reduce((s, v) => s + Math.exp(v - most), 0);
    return scores.map((v, k) => [Math.exp(v - most) / sum, characters[k]]).sort((a, b) => b[0] - a[0]).slice(0, 3)
      .map(([p, letter]) => `${letter === " " ? "␣" : letter === "\n" ? "↵" : letter} ${Math.round(100 * p)} %`).join(", ");
  }

  read(set.sentence);
}
