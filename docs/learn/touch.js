// What the pages share: sliders with labels, elements, numbers in words, pipes with water.
"use strict";

const KOREAN = document.documentElement.lang === "ko";
const say = (english, korean) => (KOREAN ? korean : english);

function make(tag, attributes = {}, ...children) {
  const drawn = ["svg", "g", "path", "line", "rect", "circle", "text", "polyline", "title", "defs", "marker"];
  const made = drawn.includes(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** Two digits after the point, a true minus, and powers of ten where that would be 0. */
function short(value) {
  const small = value !== 0 && Math.abs(value) < 0.005, large = Math.abs(value) >= 1000;
  const text = small || large ? value.toExponential(0).replace("e+", "e") : value.toFixed(2);
  return (Number(text) === 0 ? "0" : text).replaceAll("-", "−");
}

/** A slider with its label and its value; changed(value) is called at every move. */
function slider({ name, label, min, max, step, value, text = short }, changed) {
  const output = make("output", {}, text(value));
  const input = make("input", { type: "range", name, min, max, step, value, oninput() {
    output.textContent = text(Number(input.value));
    input.setAttribute("aria-valuetext", output.textContent);
    changed(Number(input.value));
  } });
  input.setAttribute("aria-valuetext", output.textContent);
  return make("label", { class: "slider" }, make("span", {}, label), input, output);
}

function setSlider(place, name, value, max) {
  const input = place.querySelector(`input[name="${name}"]`);
  if (max !== undefined) input.max = max;
  input.value = value;
  input.dispatchEvent(new Event("input"));
}

/** A choice of few: radio buttons. */
function choice(name, label, options, chosen, changed) {
  const buttons = Object.entries(options).map(([value, text]) => make("label", {},
    make("input", { type: "radio", name, value, checked: value === chosen, onchange: () => changed(value) }), text));
  return make("fieldset", { class: "choice" }, make("legend", {}, label), ...buttons);
}

/** A number in a sentence; its full value is in data-value. */
const number = (name, value, text = short(value)) => make("output", { "data-number": name, "data-value": value }, text);

/** A pipe from (x, y) with water of a value from −1 to 1: thicker for more, orange below zero. */
function pipe(x, y, length, value, upright = false) {
  const most = 34, thick = Math.min(1, Math.abs(value)) * (most - 2), kind = value < 0 ? "water below" : "water";
  const wall = (shift) => make("line", { class: "pipe", ...(upright
    ? { x1: x + shift, x2: x + shift, y1: y, y2: y + length } : { x1: x, x2: x + length, y1: y + shift, y2: y + shift }) });
  const water = upright ? { x: x - thick / 2, y, width: thick, height: length }
    : { x, y: y + most / 2 - 1 - thick, width: length, height: thick };
  return make("g", {}, make("rect", { ...water, class: kind }), wall(-most / 2), wall(most / 2));
}

/** A valve on a pipe, open from 0 to 1: a plate from above leaves that much of it free. */
function valve(x, y, opening, label) {
  const most = 34, closed = (1 - opening) * most, top = y - most / 2;
  return make("g", { class: "valve" },
    make("line", { x1: x, x2: x, y1: top - 22, y2: top }), make("line", { x1: x - 12, x2: x + 12, y1: top - 22, y2: top - 22 }),
    make("rect", { x: x - 6, y: top, width: 12, height: closed, class: "plate" }),
    make("text", { x, y: top - 29, "text-anchor": "middle" }, label));
}

/** Draws at once, and again when the width of a place changes; draw gets it in pixels. */
function drawn(place, draw) {
  place.style.overflow = "hidden";
  let width = 0;
  const again = () => draw(width);
  new ResizeObserver(() => {
    const now = Math.max(280, Math.floor(place.clientWidth));
    if (now !== width) { width = now; again(); }
  }).observe(place);
  width = Math.max(280, Math.floor(place.clientWidth));
  again();
  return again;
}
