// Paints class numbers into the cells of a grid, one cell for each of the model's pixels.
// `element`, `props`, `trigger` and `watch` come from gr.HTML, `options` from painter.py, the buttons from painter.html.
const { size, colours, names } = options;
const STEPS = 100; // that can be undone
const LIVE = 60; // ms between states of a stroke
const BLOCKS = 8; // a side of the grid of random blocks, as in mmdiff/evaluation/holes.py
const find = (selector) => element.querySelector(selector);
const all = (selector) => [...element.querySelectorAll(selector)];
const isHole = Boolean(find('.painter.hole'));
// What only makes sense for holes, and the tool to fill areas, which only does for class maps.
const others = '.classes .random, .classes [data-preset=around], .classes [data-preset=invert], .hole [data-preset=disc], .hole [data-tool=fill]';
all(others).forEach((other) => other.remove());
const canvas = find('canvas'), photo = find('img'), ring = find('.ring');
const width = find('.width input'), opacity = find('.opacity input'), share = find('.share input');
const pen = canvas.getContext('2d');
canvas.width = canvas.height = size;

let cells = new Uint8Array(size * size); // never changed but by a stroke in progress
let past = [], future = [];
let tool = 'brush', colour = 1;
let stroke = null; // while the pointer is down: its id, the cells before, where it began and where it is
let published = null; // timer of the next state of a stroke
let pointer = null; // where it was seen last, in cells

// What is painted

function show() {
  const image = pen.createImageData(size, size);
  const clear = [0, 0, 0, 0], own = props.background ? [clear, ...colours.slice(1)] : colours; // the photo shows through
  cells.forEach((cell, i) => image.data.set(own[cell], 4 * i));
  pen.putImageData(image, 0, 0);
  canvas.setAttribute('aria-label', described());
}
function described() {
  const shares = names.map((name, k) => [name, cells.reduce((sum, cell) => sum + (cell === k), 0) / cells.length]);
  const painted = shares.slice(isHole ? 1 : 0).filter(([, share]) => share > 0);
  const what = painted.map(([name, share]) => `${name} ${Math.max(1, Math.round(100 * share))}%`).join(', ');
  return `Paint area: ${what || 'nothing painted'}. Without a pointer, use the ready-made shapes below.`;
}
function asText() {
  return cells.some(Boolean) ? Array.from(cells, (cell) => String.fromCharCode(48 + cell)).join('') : null;
}
function publish() {
  show();
  offerHistory();
  props.value = asText();
  trigger('input');
}
function publishStroke() { // while it is painted, in live mode; the value stays, which would move the whole page
  if (published || !element.closest('[data-live]')) return;
  published = setTimeout(() => {
    published = null;
    if (!stroke) return;
    window.mmdiffLive.stroke = asText();
    trigger('edit');
  }, LIVE);
}
function fromValue() {
  return Uint8Array.from({ length: size * size }, (_, i) => (props.value ? props.value.charCodeAt(i) - 48 : 0));
}

// History

const same = (a, b) => a.every((cell, i) => cell === b[i]);
function remember(before) {
  past = [...past, before].slice(-STEPS);
  future = [];
}
function change(next) {
  if (same(cells, next)) return;
  remember(cells);
  cells = next;
  publish();
}
function travel(from, to) {
  if (!from.length || stroke) return;
  to.push(cells);
  cells = from.pop();
  publish();
}
function offerHistory() {
  find('[data-action=undo]').disabled = !past.length;
  find('[data-action=redo]').disabled = !future.length;
}
const actions = {
  undo: () => travel(past, future),
  redo: () => travel(future, past),
  clear: () => change(new Uint8Array(size * size)),
};

// Shapes: they colour the cells whose centres they cover, and always the cell under the pointer

const within = (k) => Math.min(size - 1, Math.max(0, Math.floor(k)));
function colourWhere([x0, y0], [x1, y1], covers) {
  for (let row = within(y0); row <= within(y1); row++)
    for (let column = within(x0); column <= within(x1); column++)
      if (covers(column + 0.5, row + 0.5)) cells[row * size + column] = colour;
}
const inside = ([x, y]) => x >= 0 && y >= 0 && x < size && y < size;
const bounds = (a, b, margin) => [0, 1].map((k) => [Math.min(a[k], b[k]) - margin, Math.max(a[k], b[k]) + margin]);

function line(from, to) {
  const radius = width.value / 2, [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  const length = dx * dx + dy * dy || 1, [xs, ys] = bounds(from, to, radius);
  colourWhere([xs[0], ys[0]], [xs[1], ys[1]], (x, y) => {
    const along = Math.min(1, Math.max(0, ((x - from[0]) * dx + (y - from[1]) * dy) / length));
    return Math.hypot(x - from[0] - along * dx, y - from[1] - along * dy) <= radius;
  });
  if (inside(to)) cells[within(to[1]) * size + within(to[0])] = colour;
}
function rectangle(from, to) {
  const [xs, ys] = bounds(from, to, 0);
  colourWhere([xs[0], ys[0]], [xs[1], ys[1]], () => true);
}
function flood([x, y]) {
  const start = within(y) * size + within(x), old = cells[start], open = [start];
  if (old === colour) return;
  while (open.length) {
    const i = open.pop(), column = i % size;
    if (cells[i] !== old) continue;
    cells[i] = colour;
    if (column > 0) open.push(i - 1);
    if (column < size - 1) open.push(i + 1);
    if (i >= size) open.push(i - size);
    if (i < size * (size - 1)) open.push(i + size);
  }
}

// Strokes

const tools = {
  brush: { down: (at) => line(at, at), move: (at) => line(stroke.at, at) },
  rectangle: { down: (at) => rectangle(at, at), move: (at) => (cells.set(stroke.before), rectangle(stroke.from, at)) },
  fill: { down: flood, move: () => {} },
};
function where(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * size, ((event.clientY - box.top) / box.height) * size];
}
canvas.onpointerdown = (event) => {
  if (stroke || event.button) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  canvas.setPointerCapture(event.pointerId);
  const at = where(event);
  stroke = { id: event.pointerId, before: cells, from: at, at };
  cells = cells.slice();
  tools[tool].down(at);
  show();
  publishStroke();
};
canvas.onpointermove = (event) => {
  pointer = where(event);
  showRing();
  if (stroke?.id !== event.pointerId) return;
  const events = event.getCoalescedEvents?.() ?? [];
  for (const at of (events.length ? events : [event]).map(where)) {
    tools[tool].move(at);
    stroke.at = at;
  }
  show();
  publishStroke();
};
canvas.onpointerup = canvas.onpointercancel = (event) => {
  if (stroke?.id !== event.pointerId) return;
  const { before } = stroke;
  stroke = null;
  if (same(before, cells)) return;
  remember(before);
  publish();
};
function showRing() {
  ring.hidden = tool !== 'brush' || !pointer;
  if (ring.hidden) return;
  const percent = (cellCount) => `${(cellCount / size) * 100}%`, radius = width.value / 2;
  Object.assign(ring.style, { left: percent(pointer[0] - radius), top: percent(pointer[1] - radius), width: percent(2 * radius) });
}

// Ready-made shapes, also for those who cannot paint: from column, row and what the cell is, to whether it is in it.
// A shape in a class map has the colour chosen and leaves the other cells as they are.

const low = Math.floor(size / 4), high = size - low;
const inBox = (x, y) => x >= low && x < high && y >= low && y < high;
const presets = {
  box: () => inBox,
  around: () => (x, y) => !inBox(x, y),
  disc: () => (x, y) => Math.hypot(x + 0.5 - size / 2, y + 0.5 - size / 2) < size * 0.32,
  left: () => (x) => x < Math.floor(size / 2),
  invert: () => (x, y, cell) => !cell,
  blocks: () => {
    const keys = Array.from({ length: BLOCKS ** 2 }, Math.random), block = (k) => Math.floor((k * BLOCKS) / size);
    const limit = [...keys].sort((a, b) => a - b)[Math.round((BLOCKS ** 2 * share.value) / 100) - 1];
    return (x, y) => keys[block(y) * BLOCKS + block(x)] <= limit;
  },
};
function fillIn(name) {
  const becomes = presets[name]();
  const next = (cell, isIn) => (isHole ? Number(isIn) : isIn ? colour : cell);
  change(cells.map((cell, i) => next(cell, becomes(i % size, Math.floor(i / size), cell))));
}

// Controls

const press = (buttons, chosen) => buttons.forEach((button) => button.setAttribute('aria-pressed', button === chosen));
function chooseTool(button) {
  tool = button.dataset.tool;
  press(all('[data-tool]'), button);
  showRing();
}
function chooseColour(index) {
  colour = index;
  press(all('.colours button'), find(`.colours [data-index="${index}"]`));
}
function addColour(name, index) {
  const button = document.createElement('button'), swatch = document.createElement('i');
  swatch.style.background = `rgb(${colours[index].slice(0, 3).join(' ')} / ${colours[index][3] / 255})`;
  button.append(swatch, name);
  button.type = 'button';
  button.dataset.index = index;
  button.onclick = () => chooseColour(index);
  find('.colours').append(button);
}
function slide(slider, unit, act) {
  slider.oninput = () => {
    slider.parentElement.querySelector('output').textContent = `${slider.value}${unit}`;
    slider.style.setProperty('--range_progress', `${((slider.value - slider.min) / (slider.max - slider.min)) * 100}%`);
    act();
  };
  slider.oninput();
}
function showPhoto() {
  photo.hidden = !props.background;
  if (props.background) photo.src = props.background;
  find('.painter').classList.toggle('over', !photo.hidden);
  show();
}
names.forEach(addColour);
chooseColour(1);
chooseTool(find('[data-tool=brush]'));
all('[data-tool]').forEach((button) => (button.onclick = () => chooseTool(button)));
all('[data-action]').forEach((button) => (button.onclick = actions[button.dataset.action]));
all('[data-preset]').forEach((button) => (button.onclick = () => fillIn(button.dataset.preset)));
width.max = Math.round(size / 2);
width.value = Math.round(size / 8);
opacity.value = 75;
slide(width, ' px', showRing);
slide(opacity, '%', () => element.style.setProperty('--opacity', opacity.value / 100));
if (share) slide(share, '%', () => {});

// Keys, for the painter that has the focus or is under the pointer

function resize(by) {
  width.value = Number(width.value) + by;
  width.oninput();
}
function actionOf({ key, ctrlKey, metaKey, shiftKey }) {
  if ((ctrlKey || metaKey) && key.toLowerCase() === 'z') return shiftKey ? actions.redo : actions.undo;
  if (!metaKey && '[]'.includes(key)) return () => resize(key === ']' ? 1 : -1);
}
function onKey(event) {
  const writing = event.target.closest?.('input:not([type=range]), textarea, select, [contenteditable]');
  const action = event.defaultPrevented || writing ? null : actionOf(event);
  if (!action) return;
  event.preventDefault();
  action();
}
element.addEventListener('keydown', onKey);
element.addEventListener('pointerenter', () => document.addEventListener('keydown', onKey));
element.addEventListener('pointerleave', () => document.removeEventListener('keydown', onKey));

// From outside

watch('value', () => { // also called when the page has only written what was painted in another way, as '' for null
  const next = fromValue(), now = stroke ? stroke.before : cells;
  if (same(next, now)) return;
  remember(now); // so that it can be undone
  stroke = null;
  cells = next;
  show();
  offerHistory();
});
watch('background', showPhoto);
cells = fromValue();
show();
offerHistory();
showPhoto();
