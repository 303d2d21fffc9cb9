// Keeps the frames of one or two runs and shows the step looked at; see player_data.py for the messages.
// `element`, `props` and `watch` come from gr.HTML, `WORDS`, `ROLES` and `SETTLED` from player_data.py; player_panels.js and player_steps.js
// stand before this in the same script. A part of the page is {node, fill, show}: `fill` is called when there is
// more to draw (frames, another sample, another width), `show` when another step is looked at.
const SCALE = 10000; // of probabilities and areas
const TOP = 5; // classes in bars and curves
const FAINT = SCALE / 200; // probability below which a label is left out
const PLAY_SECONDS = 4;
const TWO_COLUMNS = 680, NARROW = 560; // px
const root = element.querySelector('.player'), lanesNode = root.querySelector('.lanes');
const scrubber = root.querySelector('.scrubber'), play = root.querySelector('.play');
const where = root.querySelector('.where'), announced = root.querySelector('.announced');

let tracks = [], lanes = []; // what is known of the runs, and how they are drawn
const view = { time: null, sample: 0, timer: null }; // time: of the step looked at, null: the newest

// -- small helpers ---------------------------------------------------------------------------------------

function make(tag, className, properties = {}, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  Object.assign(node, properties).append(...children);
  return node;
}
const say = (tag, className, textContent) => make(tag, className, { textContent });
function draw(tag, attributes, text) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
function set(node, name, value) { // leaves alone what is right already
  if (node[name] !== value) node[name] = value;
}
function swatch(colour) {
  const node = make('i');
  node.style.background = colour;
  return node;
}
const capital = (name) => name.charAt(0).toUpperCase() + name.slice(1);
const percent = (share) => (share > 0 && share < 0.01 ? '< 1%' : `${Math.round(100 * share)}%`);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const least = (items, cost) => items.reduce((best, item) => (cost(item) < cost(best) ? item : best), items[0]);
const largest = (shares, count) => shares.map((share, k) => [k, share]).sort((a, b) => b[1] - a[1]).slice(0, count);

const ofForm = (track, ...forms) => track.heads.filter((head) => forms.includes(head.form));
// Those that a run changes: not what is given, unless a fork gave it on the way.
const changing = (track, ...forms) => ofForm(track, ...forms).filter((head) => head.role !== 'given' || track.fork !== null);
const sampleOf = (track) => Math.min(view.sample, track.samples - 1);
const newest = (track) => track.frames.at(-1);

// -- tracks ----------------------------------------------------------------------------------------------

const MAKERS = [levels, cards, told, panels, heat, timeline, curves]; // of a lane's rows, below its title

function lane(track, number) {
  const many = track.samples > 1;
  const makers = MAKERS.filter((maker) => many || ![cards, heat].includes(maker));
  const parts = makers.map((maker) => maker(track));
  makers.forEach((maker, k) => { parts[k].node.style.gridRow = 2 + MAKERS.indexOf(maker); }); // the same in every lane
  const state = say('span', 'state', '');
  const head = make('header', '', { hidden: tracks.length < 2 }, say('h3', 'title', track.title), state);
  const node = make('article', 'lane', {}, head, ...parts.map((part) => part.node));
  Object.assign(node.dataset, { track: number, run: track.id });
  const show = (step) => {
    set(state, 'textContent', step ? `Step ${step.i} of ${track.total}` : 'Waiting …');
    if (step) parts.forEach((part) => part.show(step, sampleOf(track)));
  };
  return { node, show, fill: () => track.frames.length && parts.forEach((part) => part.fill()) };
}
function merge(sent) { // a message's track with the frames that are kept of it
  const kept = tracks.find((track) => track.id === sent.id)?.frames ?? [];
  const frames = new Map([...kept, ...sent.frames].map((frame) => [frame.i, frame]));
  return { ...sent, frames: [...frames.values()].sort((a, b) => a.i - b.i) };
}
function shape(all) { // what lanes have to be built anew for
  const facts = ({ id, title, total, fork, samples, heads }) => [id, title, total, fork, samples, heads];
  return JSON.stringify(all.map(facts));
}

function load() {
  const before = tracks, next = (props.value ? JSON.parse(props.value).tracks : []).map(merge);
  const isOld = (track) => before.some((old) => old.id === track.id);
  if (!next.every(isOld)) startAnew(next.some(isOld));
  if (shape(next) === shape(before)) before.forEach((track, k) => Object.assign(track, next[k]));
  else {
    tracks = next;
    lanes = tracks.map(lane);
    lanesNode.replaceChildren(...lanes.map(({ node }) => node));
  }
  measure();
  report();
  askForNoise();
}
let reported; // the last run that runs.js has heard of
function report() { // a run that is over; not the example, which is there from the start
  const track = tracks.at(-1), isNew = track && track.id !== reported;
  if (!isNew || (reported !== undefined && state() === 'running')) return;
  if (reported !== undefined && state() === 'done') {
    const run = kept(track);
    sceneOf(track).catch(() => null).then((scene) => document.dispatchEvent(new CustomEvent('run-done', { detail: { ...run, scene } })));
  }
  reported = track.id;
}
function kept(track) { // a run as its picture, with the settings inside, and a few words
  const step = newest(track), seenAs = ofForm(track, 'picture')[0] ?? ofForm(track, 'class_map')[0];
  const said = ofForm(track, 'class', 'vector')[0], title = said ? saying(said, step, 0).text ?? '' : '';
  const seed = track.file.split('_').at(-1), about = `${track.total} steps, seed ${seed}`;
  const task = element.closest('.run-panel')?.id.replace(/-run-panel$/, '') ?? '';
  return { task, picture: seenAs && thumbnail(seenAs, step, 0), title, about, seed };
}
function startAnew(someStay) {
  view.time = null;
  view.timer = clearInterval(view.timer);
  if (!someStay) slots.clear();
}
function measure() { // Gradio drops container queries from style sheets
  const width = lanesNode.clientWidth, columns = lanes.length > 1 && width >= TWO_COLUMNS ? 2 : 1;
  Object.assign(lanesNode.dataset, { columns, narrow: width / columns < NARROW });
  fill();
}
function fill() {
  view.sample = clamp(view.sample, 0, Math.max(0, ...tracks.map((track) => track.samples - 1)));
  chooseClasses();
  lanes.forEach((one) => one.fill());
  show();
}

// -- the step looked at ----------------------------------------------------------------------------------

// The scrubber counts the steps of the longest track; the others show the step that is nearest in time.
function leader() {
  const begun = tracks.filter((track) => track.frames.length);
  return least(begun, (track) => -1000 * track.total - track.frames.length);
}
function latest() { // the time of the newest step
  const running = tracks.find((track) => track.running && track.frames.length);
  return newest(running ?? leader()).t;
}
function show() {
  const lead = leader(), time = lead && (view.time ?? latest());
  const steps = tracks.map((track) => least(track.frames, (frame) => Math.abs(frame.t - time)));
  lanes.forEach((one, k) => one.show(steps[k]));
  showBar(lead, lead ? steps[tracks.indexOf(lead)].i : 0);
  const { i: step = 0 } = steps[0] ?? {}, total = tracks[0]?.total ?? 0, now = state();
  announce(now);
  Object.assign(root.dataset, { step, total, sample: view.sample, state: now });
}
function showBar(lead, index) {
  scrubber.max = lead?.total ?? 1;
  scrubber.value = index || 1;
  scrubber.style.setProperty('--done', `${(100 * (index - 1)) / Math.max(1, scrubber.max - 1)}%`);
  scrubber.disabled = play.disabled = !lead;
  set(where, 'textContent', lead ? `Step ${index} of ${lead.total}` : 'Waiting …');
  scrubber.setAttribute('aria-valuetext', where.textContent);
  play.setAttribute('aria-label', view.timer ? 'Pause' : 'Play');
}
function state() {
  if (!tracks.length) return 'empty';
  if (tracks.some((track) => track.running)) return 'running';
  return tracks.some((track) => track.stopped) ? 'stopped' : 'done';
}
function announce(now) { // to those who do not see it; nobody waits for the example
  const before = root.dataset.state;
  if (before === now || before === 'empty') return;
  const ends = tracks.map((track) => track.frames.length && seen(track, track.heads[0], newest(track), sampleOf(track)));
  const stories = tracks.map((track) => track.story[sampleOf(track)]);
  const words = [...ends, ...stories].filter(Boolean).join('. ');
  announced.textContent = now === 'running' ? 'Running.' : `${capital(now)}. ${words}`;
}
function goTo(track, index) {
  const step = least(track.frames, (frame) => Math.abs(frame.i - index));
  if (!step) return;
  view.time = step.t === latest() ? null : step.t;
  show();
}
function advance(by) { // false: there is nothing further that way
  const lead = leader(), now = lead ? lead.frames.findIndex((frame) => frame.i === Number(scrubber.value)) : -1;
  const next = lead?.frames[now + by];
  if (next) goTo(lead, next.i);
  return Boolean(next);
}
function pause() {
  view.timer = clearInterval(view.timer);
  show();
}
play.onclick = () => {
  if (view.timer) return pause();
  const lead = leader();
  if (Number(scrubber.value) === newest(lead).i) goTo(lead, 1);
  view.timer = setInterval(() => advance(1) || pause(), clamp((1000 * PLAY_SECONDS) / lead.total, 60, 400));
  show();
};
scrubber.oninput = () => {
  view.timer = clearInterval(view.timer);
  goTo(leader(), Number(scrubber.value));
};
root.onkeydown = (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by || event.target.type === 'range') return; // a slider has its own keys
  event.preventDefault();
  advance(by);
};
new ResizeObserver(measure).observe(lanesNode);
const status = element.closest('.run-panel')?.querySelector('.status-line'); // sticks to the top, the bar below it
if (status) new ResizeObserver(() => root.style.setProperty('--player-top', `${status.offsetHeight - 2}px`)).observe(status);
watch('value', load);
load();
