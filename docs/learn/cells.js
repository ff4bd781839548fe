// One step of a cell and its way back, from the cell's graph in numbers.js; and the same over time.
// A row is an array of numbers, a matrix an array of rows.
"use strict";

const sigmoid = (a) => 1 / (1 + Math.exp(-a));

// Of each operation: its value, and the gradients of its operands v for the gradient d of its result y.
const OPERATIONS = {
  "σ": [(a) => sigmoid(a), (d, v, y) => [d * y * (1 - y)]],
  tanh: [(a) => Math.tanh(a), (d, v, y) => [d * (1 - y * y)]],
  "+": [(a, b) => a + b, (d) => [d, d]],
  "×": [(a, b) => a * b, (d, [a, b]) => [d * b, d * a]],
  "1−": [(a) => 1 - a, (d) => [-d]],
};

const isMatrix = (a) => Array.isArray(a[0]);
const zeros = (like) => like.map((a) => (Array.isArray(a) ? zeros(a) : 0));
const addTo = (sum, a) => a.forEach((v, k) => Array.isArray(v) ? addTo(sum[k], v) : (sum[k] += v));
const times = (row, W) => W[0].map((_, j) => row.reduce((sum, v, i) => sum + v * W[i][j], 0)); // row W
const timesTransposed = (row, W) => W.map((w) => w.reduce((sum, v, j) => sum + v * row[j], 0)); // row Wᵀ
const outer = (a, b) => a.map((v) => b.map((w) => v * w)); // aᵀ b
const norm = (a) => Math.sqrt(a.flat().reduce((sum, v) => sum + v * v, 0));

/** The columns of a parameter that a gate uses; a view of all others is left alone. */
function columns(param, block, H) {
  if (isMatrix(param)) return param.map((row) => columns(row, block, H));
  return param.slice(block * H, (block + 1) * H);
}

function addColumns(sum, part, block, H) {
  if (isMatrix(sum)) sum.forEach((row, k) => addColumns(row, part[k], block, H));
  else part.forEach((v, k) => (sum[block * H + k] += v));
}

/** Forward: the value of every node. inputs: rows by the names x, h_prev ...; params: by Wx, Wh, b. */
function forward(graph, inputs, params) {
  const H = inputs.h_prev.length, values = [];
  const seen = (use) => "block" in use ? columns(values[use.from], use.block, H) : values[use.from];
  for (const node of graph.nodes) {
    const v = node.uses.map(seen);
    if (node.kind === "input") values.push(inputs[node.name]);
    else if (node.kind === "parameter") values.push(params[node.name]);
    else if (node.kind === "operation")
      values.push(v[0].map((_, k) => OPERATIONS[node.label][0](...v.map((row) => row[k]))));
    else {
      const pairs = pairsOf(node), sum = new Array(H).fill(0);
      for (let k = 0; k < pairs; k++) addTo(sum, times(v[2 * k], v[2 * k + 1]));
      v.slice(2 * pairs).forEach((row) => addTo(sum, row));
      values.push(sum);
    }
  }
  return values;
}

const pairsOf = (node) => (node.kind === "MatMul" ? 1 : node.products || 0); // operand and weight

/** Backward: for the gradients of the outputs (rows by h, c) those of all nodes, and along all edges. */
function backward(graph, values, dnext) {
  const H = dnext.h.length, nodes = values.map(zeros), edges = graph.nodes.map(() => []);
  for (let n = graph.nodes.length - 1; n >= 0; n--) {
    const node = graph.nodes[n];
    if (node.kind === "output") addTo(nodes[n], dnext[node.name.replace("_next", "")]);
    const d = nodes[n], pairs = pairsOf(node);
    const v = node.uses.map((use) => "block" in use ? columns(values[use.from], use.block, H) : values[use.from]);
    edges[n] = v.map((_, k) => {
      if (node.kind === "operation")
        return d.map((dk, j) => OPERATIONS[node.label][1](dk, v.map((row) => row[j]), values[n][j])[k]);
      if (k >= 2 * pairs) return [...d];
      return k % 2 ? outer(v[k - 1], d) : timesTransposed(d, v[k + 1]);
    });
    node.uses.forEach((use, k) => {
      if ("block" in use) addColumns(nodes[use.from], edges[n][k], use.block, H);
      else addTo(nodes[use.from], edges[n][k]);
    });
  }
  return { nodes, edges };
}

/** The rows of a graph's inputs or results by their names. */
function named(graph, rows, kind) {
  const found = {};
  graph.nodes.forEach((node, k) => node.kind === kind && (found[node.name] = rows[k]));
  return found;
}

/** Forward over a sequence of rows: the values of every step. */
function forwardSteps(graph, xs, params, state) {
  const steps = [];
  for (const x of xs) {
    const values = forward(graph, { x, ...state }, params), out = named(graph, values, "output");
    state = Object.fromEntries(graph.states.map((name) => [`${name}_prev`, out[`${name}_next`]]));
    steps.push(values);
  }
  return steps;
}

/** BPTT back from the last of these steps. dhs: the gradient of each output. For each step the gradient
 *  that arrives at its states, from later steps and from its own output together; and grads, summed. */
function backwardSteps(graph, steps, dhs) {
  const H = dhs[0].length, arriving = [];
  let dnext = Object.fromEntries(graph.states.map((name) => [name, new Array(H).fill(0)])), grads = null;
  for (let t = steps.length - 1; t >= 0; t--) {
    addTo(dnext.h, dhs[t]);
    arriving[t] = dnext;
    const { nodes } = backward(graph, steps[t], dnext);
    const before = named(graph, nodes, "input"), weights = named(graph, nodes, "parameter");
    if (grads) Object.keys(grads).forEach((name) => addTo(grads[name], weights[name]));
    else grads = weights;
    dnext = Object.fromEntries(graph.states.map((name) => [name, before[`${name}_prev`]]));
  }
  return { arriving, grads, dstate: dnext };
}

/** Truncated BPTT: forward through all steps, back through each block by itself. */
function truncated(graph, xs, params, state, dhs, block) {
  const steps = forwardSteps(graph, xs, params, state), arriving = [];
  for (let start = 0; start < xs.length; start += block)
    arriving.push(...backwardSteps(graph, steps.slice(start, start + block), dhs.slice(start, start + block)).arriving);
  return { steps, arriving };
}

/** A state of zeros. */
const zeroState = (graph, H) =>
  Object.fromEntries(graph.states.map((name) => [`${name}_prev`, new Array(H).fill(0)]));
