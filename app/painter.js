// Paints class numbers into the cells of a grid, one cell for each of the model's pixels.
// `element`, `props`, `trigger` and `watch` come from gr.HTML; see painter.py for the props.
const { size, colours, names } = props;
const find = (selector) => element.querySelector(selector);
const canvas = find('canvas'), photo = find('img'), ring = find('.ring'), width = find('input'), undo = find('.undo');
const pen = canvas.getContext('2d');
canvas.width = canvas.height = size;
width.max = Math.round(size / 2);
width.value = Math.round(size / 8);
let cells, past, colour, last = null;

const choose = (index) => {
  colour = index;
  find('.colours').childNodes.forEach((button) => button.setAttribute('aria-pressed', button.dataset.index == index));
};
names.forEach((name, index) => {
  const button = document.createElement('button'), swatch = document.createElement('i');
  swatch.style.background = `rgb(${colours[index].slice(0, 3).join(' ')} / ${colours[index][3] / 255})`;
  button.append(swatch, name);
  button.dataset.index = index;
  button.onclick = () => choose(index);
  if (index) find('.colours').append(button); else find('.colours').prepend(button);
});
choose(1);

function draw() {
  const image = pen.createImageData(size, size);
  cells.forEach((cell, i) => image.data.set(colours[cell], 4 * i));
  pen.putImageData(image, 0, 0);
  undo.disabled = !past.length;
}
function load() {
  cells = Uint8Array.from({ length: size * size }, (_, i) => (props.value ? props.value.charCodeAt(i) - 48 : 0));
  past = [];
  photo.hidden = !props.background;
  if (props.background) photo.src = props.background;
  draw();
}
function publish() {
  draw();
  props.value = cells.some(Boolean) ? Array.from(cells, (cell) => String.fromCharCode(48 + cell)).join('') : null;
  trigger('input');
}
function remember() {
  past.push(cells.slice());
  if (past.length > 50) past.shift();
}

const radius = () => Math.max(width.value / 2, 0.71); // so that the thinnest brush always covers its cell
function where(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * size, ((event.clientY - box.top) / box.height) * size];
}
function dot(x, y) {
  const r = radius();
  for (let row = Math.max(0, Math.floor(y - r)); row < Math.min(size, y + r); row++)
    for (let column = Math.max(0, Math.floor(x - r)); column < Math.min(size, x + r); column++)
      if (Math.hypot(column + 0.5 - x, row + 0.5 - y) <= r) cells[row * size + column] = colour;
}
function line([x0, y0], [x1, y1]) {
  const dots = Math.ceil(2 * Math.hypot(x1 - x0, y1 - y0)) || 1;
  for (let k = 1; k <= dots; k++) dot(x0 + ((x1 - x0) * k) / dots, y0 + ((y1 - y0) * k) / dots);
}
function showRing(event) {
  const [x, y] = where(event), r = radius();
  Object.assign(ring.style, { left: `${((x - r) / size) * 100}%`, top: `${((y - r) / size) * 100}%`, width: `${((2 * r) / size) * 100}%` });
}
canvas.onpointerdown = (event) => {
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  remember();
  last = where(event);
  dot(...last);
  draw();
};
canvas.onpointermove = (event) => {
  showRing(event);
  if (!last) return;
  const here = where(event);
  line(last, here);
  last = here;
  draw();
};
canvas.onpointerup = canvas.onpointercancel = () => {
  if (last) publish();
  last = null;
};
undo.onclick = () => {
  cells = past.pop() ?? cells;
  publish();
};
find('.clear').onclick = () => {
  remember();
  cells = new Uint8Array(size * size);
  publish();
};

watch(['value', 'background'], load);
load();
