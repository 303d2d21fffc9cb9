// All steps at a glance: the timeline and the curves; see player.js.
const CELL = { true: 44, false: 48 }, ROW_NAME = 76; // px of the timeline, CELL by whether it is narrow
const COLOURS = [...Array(5).keys()]; // --series-0 … --series-4
const slots = new Map(); // class name -> its colour, which it keeps while it is drawn

// -- timeline --------------------------------------------------------------------------------------------

function timeline(track) {
  const grid = make('div', 'grid'), about = say('p', 'hint', 'Underlined from the step on at which it is settled.');
  const node = make('section', 'timeline', {}, say('h3', '', 'Step by step'), grid, about);
  const cursor = make('span', 'cursor');
  let steps = [], rows = [], built = null;
  function build(width) {
    const room = Math.max(2, Math.floor((width - ROW_NAME) / CELL[lanesNode.dataset.narrow]));
    steps = spread(track.total, room);
    const shown = track.heads.flatMap((head) => [...(hasNoise(track, head) ? [noisyRow(head)] : []), ofHead(head)]);
    rows = shown.map((one, k) => timelineRow(one, k + 2, steps.length));
    const longest = Math.max(...tracks.map(({ total }) => Math.min(total, room)));
    grid.style.setProperty('--count', longest); // so that the cells of all tracks have one size
    const numbers = steps.map((step, k) => placed(say('span', 'number', step), 1, k + 2));
    const whole = [cursor, ...forkLine(track, steps), ...hits(track, steps)];
    whole.forEach((mark) => { mark.style.gridRow = `1 / ${rows.length + 2}`; });
    const cells = rows.flatMap((row) => row.nodes);
    grid.replaceChildren(placed(say('span', 'name', 'Step'), 1, 1), ...numbers, ...cells, ...whole);
  }
  return {
    node,
    fill() {
      const facts = [node.clientWidth, ...track.heads.map((head) => hasNoise(track, head))].join();
      if (built !== facts) {
        build(node.clientWidth);
        built = facts;
      }
      rows.forEach((row) => row.fill(steps.map((step) => knownAt(track, step)), sampleOf(track)));
      rows.forEach((row) => row.settle(steps, track.settled, sampleOf(track)));
      about.hidden = !Object.keys(track.settled).length;
    },
    show(step) {
      const nearest = least(steps, (shown) => Math.abs(shown - step.i));
      cursor.style.gridColumn = steps.indexOf(nearest) + 2;
    },
  };
}
function spread(total, count) { // as many steps as there is room for, the first and the last among them
  const room = Math.min(count, total);
  const gap = (total - 1) / Math.max(1, room - 1);
  return Array.from({ length: room }, (_, k) => total - Math.round((room - 1 - k) * gap));
}
function knownAt(track, index) { // the frame of a step, the one before it if the browser skipped it
  return newest(track)?.i >= index ? track.frames.findLast((frame) => frame.i <= index) : undefined;
}
function placed(node, row, column) {
  Object.assign(node.style, { gridRow: row, gridColumn: column });
  return node;
}
function hits(track, steps) {
  const properties = (step) => ({ tabIndex: -1, title: `Step ${step}`, onclick: () => goTo(track, step) });
  return steps.map((step, k) => placed(make('button', 'hit', properties(step)), '', k + 2));
}
function forkLine(track, steps) {
  if (track.fork === null) return [];
  const line = make('span', 'fork', { title: `Branches off after step ${track.fork}` });
  return [placed(line, '', 2 + steps.findIndex((step) => step > track.fork))];
}
// A row of the timeline: its name, and `uri` of what it shows of a step, if that is a picture, or its head.
const isPicture = (head) => ['picture', 'class_map'].includes(head.form);
const ofHead = (head) => ({ head, settles: true, name: capital(head.name), uri: isPicture(head) && ((step, sample) => thumbnail(head, step, sample)) });
const noisyRow = (head) => ({ head, name: `Noisy ${head.name}`, uri: (step, sample) => step.n?.[head.name]?.[sample] });

function timelineRow({ head, name, uri, settles }, row, count) {
  const cells = Array.from({ length: count }, (_, k) => placed(make('span', 'cell'), row, k + 2));
  const own = uri ? pictureRow(uri, cells) : textRow(head, cells, row);
  const settle = (steps, at, sample) => cells.forEach((cell, k) => {
    cell.classList.toggle('is-settled', Boolean(settles) && steps[k] >= at[head.name]?.[sample]);
  });
  return { nodes: [placed(say('span', 'name', name), row, 1), ...cells, ...own.nodes], fill: own.fill, settle };
}
function pictureRow(uri, cells) {
  const images = cells.map(() => make('img', '', { alt: '', hidden: true }));
  cells.forEach((cell, k) => cell.append(images[k]));
  const fill = (known, sample) => known.forEach((step, k) => {
    const found = step && uri(step, sample);
    images[k].hidden = !found;
    if (found) set(images[k], 'src', found);
  });
  return { nodes: [], fill };
}
function textRow(head, cells, row) { // a band of colours; equal neighbours share one text
  const texts = cells.map((_, k) => placed(make('span', 'segment', { hidden: true }), row, k + 2));
  cells.forEach((cell) => cell.classList.add('text'));
  cells.at(-1).classList.add('last');
  const fill = (known, sample) => {
    const said = known.map((step) => step && saying(head, step, sample));
    said.forEach((here, k) => {
      const begins = Boolean(here?.text) && said[k - 1]?.text !== here.text;
      cells[k].style.background = here?.background ?? '';
      cells[k].classList.toggle('start', begins);
      texts[k].hidden = !begins;
      if (!begins) return;
      const length = said.slice(k).findIndex((other) => other?.text !== here.text);
      set(texts[k], 'textContent', here.text);
      texts[k].style.gridColumn = `${k + 2} / ${2 + (length < 0 ? cells.length : k + length)}`;
    });
  };
  return { nodes: texts, fill };
}
function saying(head, step, sample) { // of a label or an embedding: in short, and how sure
  const found = step.x[head.name][sample];
  if (found.strip) return { background: `center / 100% 100% url(${found.strip})` };
  if (head.form === 'class') {
    const [[k, value]] = largest(found, 1);
    return { text: head.classes[k], background: faded(colourOf(head.classes[k]), value / SCALE) };
  }
  const [text = '', cosine = 0] = WORDS.map(([name]) => found[name][0]).find(Boolean) ?? [];
  return { text: text.replace(/^an? photo of (an? )?/, ''), background: faded('var(--primary-500)', cosine) };
}
function faded(colour, share) {
  return `color-mix(in srgb, ${colour} ${Math.round(10 + 50 * clamp(share, 0, 1))}%, var(--paper))`;
}

// -- curves ----------------------------------------------------------------------------------------------

const colourOf = (name) => (slots.has(name) ? `var(--series-${slots.get(name)})` : 'var(--series-none)');

function chooseClasses() { // the labels that were likeliest at any step of any track
  const most = new Map();
  const note = (name, value) => most.set(name, Math.max(value, most.get(name) ?? 0));
  for (const track of tracks) for (const head of ofForm(track, 'class')) for (const step of track.frames) {
    step.x[head.name][sampleOf(track)].forEach((value, k) => note(head.classes[k], value));
  }
  const likely = [...most].filter(([, value]) => value >= FAINT).sort((a, b) => b[1] - a[1]);
  const chosen = likely.slice(0, COLOURS.length).map(([name]) => name);
  slots.forEach((_, name) => chosen.includes(name) || slots.delete(name));
  for (const name of chosen.filter((other) => !slots.has(other))) {
    slots.set(name, COLOURS.find((k) => ![...slots.values()].includes(k)));
  }
}
function series(track, head, name, colour, value) {
  const points = track.frames.map((step) => [step.i, value(step.x[head.name][sampleOf(track)]) / SCALE]);
  return { name, colour, points, most: Math.max(0, ...points.map((point) => point[1])) };
}
function labelSeries(track, head) {
  const names = [...slots].sort((a, b) => a[1] - b[1]).map(([name]) => name);
  return names.filter((name) => head.classes.includes(name)).map((name) => {
    const k = head.classes.indexOf(name);
    return series(track, head, name, colourOf(name), (found) => found[k]);
  });
}
function areaSeries(track, head) { // without the first class, the ground: it is the rest of the picture
  const all = head.classes.map((name, k) => series(track, head, name, head.colours[k], (found) => found.a[k]));
  return all.slice(all.length > 1 ? 1 : 0).sort((a, b) => b.most - a.most).slice(0, TOP);
}
function curves(track) {
  const charts = changing(track, 'class', 'class_map').map((head) => (head.form === 'class'
    ? chart(track, `${capital(head.name)}: probability`, () => labelSeries(track, head))
    : chart(track, `${capital(head.name)}: share of the image`, () => areaSeries(track, head), moves)));
  return {
    node: make('section', 'curves', { hidden: !charts.length }, ...charts.map((one) => one.node)),
    fill: () => charts.forEach((one) => one.fill()),
    show: (step) => charts.forEach((one) => one.show(step)),
  };
}
const PLOT = { left: 38, right: 10, top: 8, bottom: 24, height: 124 }; // px

const MOVES = 0.02; // share of the picture by which an area has to change to be worth a curve
const moves = (lines) => lines.some(({ points }) => {
  const shares = points.map(([, share]) => share);
  return Math.max(...shares) - Math.min(...shares) >= MOVES;
});

function chart(track, heading, allSeries, says) { // says: whether the lines say something
  const svg = draw('svg', { height: PLOT.height, role: 'img', 'aria-label': `${heading} at every step` });
  const keys = make('div', 'keys'), node = make('figure', '', {}, say('h3', '', heading), svg, keys);
  const cursor = draw('line', { class: 'cursor' });
  let lines = [], values = [], place;
  return {
    node,
    fill() {
      lines = allSeries();
      node.hidden = Boolean(says) && !says(lines);
      values = lines.map(() => make('span', 'value'));
      place = scales(node.clientWidth || 320, track.total, Math.max(0, ...lines.map((line) => line.most)));
      svg.setAttribute('width', place.width);
      const drawn = lines.flatMap((line) => curve(place, line));
      svg.replaceChildren(...axes(place, track.total), ...drawn, ...forkMark(place, track.fork), cursor);
      keys.replaceChildren(...lines.map((line, k) => key(line, values[k])));
    },
    show(step) {
      stand(cursor, place.x(step.i));
      lines.forEach(({ points }, k) => set(values[k], 'textContent', percent(points.find(([i]) => i === step.i)[1])));
    },
  };
}
function key({ name, colour }, value) {
  return make('span', '', { title: name }, swatch(colour), say('span', 'name', name), value);
}
function scales(width, total, most) {
  const top = [0.1, 0.25, 0.5].find((limit) => most <= limit) ?? 1, ground = PLOT.height - PLOT.bottom;
  const x = (step) => PLOT.left + ((step - 1) / Math.max(1, total - 1)) * (width - PLOT.left - PLOT.right);
  return { width, top, ground, x, y: (share) => ground - (share / top) * (ground - PLOT.top) };
}
function axes({ width, top, ground, y }, total) {
  const right = width - PLOT.right;
  const rule = (share) => [
    draw('line', { class: 'rule', x1: PLOT.left, x2: right, y1: y(share), y2: y(share) }),
    draw('text', { x: PLOT.left - 6, y: y(share) + 4, 'text-anchor': 'end' }, `${+(100 * share).toFixed(1)}%`),
  ];
  const below = (x, anchor, text) => draw('text', { x, y: ground + 17, 'text-anchor': anchor }, text);
  const middle = below((PLOT.left + right) / 2, 'middle', 'Step');
  const names = [below(PLOT.left, 'start', 1), middle, below(right, 'end', total)];
  return [0, top / 2, top].flatMap(rule).concat(names);
}
function curve({ x, y }, { points, colour }) {
  const path = points.map(([step, share]) => `${x(step).toFixed(1)},${y(share).toFixed(1)}`).join(' ');
  const line = draw('polyline', { class: 'curve', points: points.length > 1 ? path : `${path} ${path}` });
  line.style.stroke = colour;
  return [draw('polyline', { class: 'halo', points: path }), line];
}
function stand(line, x) { // upright, over the whole height
  const ends = { x1: x, x2: x, y1: PLOT.top, y2: PLOT.height - PLOT.bottom };
  for (const [name, value] of Object.entries(ends)) line.setAttribute(name, value);
}
function forkMark({ width, x }, fork) {
  if (fork === null) return [];
  const line = draw('line', { class: 'fork' }), late = x(fork) > width - 60;
  stand(line, x(fork));
  const where = { x: x(fork) + (late ? -4 : 4), y: PLOT.top + 8, 'text-anchor': late ? 'end' : 'start' };
  return [line, draw('text', { class: 'fork', ...where }, 'branch')];
}
