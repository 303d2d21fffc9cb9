// Replays recorded runs: every modality comes out of the noise of each step. See app/run/showcase.py for the scenes.
// What is seen at a moment is the prediction of that step under as much noise as the state had then.
const FORM = 4000, HOLD = 4200, VEIL = 900, TICK = 40; // ms
const GRAIN = 84; // cells of noise on a side
const STILL = matchMedia('(prefers-reduced-motion: reduce)');

function seeded(seed) { // mulberry32: the same noise for the same scene
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
function drawNoise(canvas, form, seed) {
  const random = seeded(seed), pen = canvas.getContext('2d'), image = pen.createImageData(canvas.width, canvas.height);
  const normal = () => (random() + random() + random() + random() - 2) * 90; // nearly Gaussian
  for (let i = 0; i < image.data.length; i += 4) {
    const grey = 128 + normal(), tint = form === 'picture' ? normal : () => 0;
    for (let k = 0; k < 3; k++) image.data[i + k] = grey * (form === 'picture' ? 0.35 : 1) + (form === 'picture' ? 83 : 0) + tint();
    image.data[i + 3] = 255;
  }
  pen.putImageData(image, 0, 0);
}
async function loaded(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
  return prepared(await answer.json());
}
async function prepared(found) { // a scene or several
  await Promise.all([found].flat().flatMap((scene) => scene.tiles).filter((tile) => tile.strip).map((tile) => {
    tile.image = new Image();
    tile.image.src = tile.strip;
    return tile.image.decode();
  }));
  return found;
}

class Constellation {
  // `next` gives a promise of the scene with a number; `tell` is called with (scene, number) when one begins.
  constructor(node, next, tell) {
    Object.assign(this, { node, next, tell, number: 0, scene: null, clock: 0, going: false, timer: null, turn: 0 });
    this.figures = [...node.querySelectorAll('figure')];
    this.figures.forEach((figure, k) => {
      const noise = figure.querySelector('.noise');
      const { width, height } = figure.querySelector('.plate').getBoundingClientRect();
      noise.width = GRAIN;
      noise.height = Math.max(8, Math.round((GRAIN * height) / width) || GRAIN);
      drawNoise(noise, figure.dataset.form, k + 1);
    });
    this.lines();
    new ResizeObserver(() => this.lines()).observe(node);
  }
  lines() { // between all tiles, and those of a pinned one lit
    const svg = this.node.querySelector('.lines'), own = this.node.getBoundingClientRect(), figures = this.figures.filter((one) => !one.hidden);
    const centres = figures.map((figure) => {
      const box = figure.querySelector('.plate').getBoundingClientRect();
      return [box.x + box.width / 2 - own.x, box.y + box.height / 2 - own.y];
    });
    const pinned = figures.findIndex((figure) => figure.classList.contains('pinned'));
    const pairs = centres.flatMap((one, i) => centres.slice(i + 1).map((other, j) => [one, other, i, i + 1 + j]));
    svg.replaceChildren(...pairs.map(([[x1, y1], [x2, y2], i, j]) => {
      const line = document.createElementNS('http://www.w3.org/2000/svg', 'line');
      Object.entries({ x1, y1, x2, y2 }).forEach(([name, value]) => line.setAttribute(name, value));
      if (pinned === i || pinned === j) line.classList.add('lit');
      return line;
    }));
  }
  async start(number) { // shows this scene from its beginning
    const turn = ++this.turn, scene = await this.next(number);
    if (turn !== this.turn) return;
    const fresh = !this.scene;
    Object.assign(this, { scene, number, clock: fresh ? VEIL : 0 });
    this.node.dataset.scene = number;
    this.figures.forEach((figure) => {
      figure.hidden = !scene.tiles.some((tile) => tile.name === figure.dataset.name);
      figure.classList.toggle('pinned', this.isPinned(figure.dataset.name));
    });
    this.lines();
    this.tell(scene, number);
    if (STILL.matches) this.clock = VEIL + FORM;
    this.show();
    this.next(number + 1).catch(() => {}); // so that it is there in time
  }
  show() {
    const done = Math.min(1, Math.max(0, (this.clock - VEIL) / FORM));
    this.node.dataset.done = done.toFixed(2);
    this.figures.forEach((figure) => {
      const tile = this.scene.tiles.find((one) => one.name === figure.dataset.name);
      if (!tile) return;
      const pinned = this.isPinned(tile.name), veiled = this.clock < VEIL;
      figure.querySelector('.noise').style.opacity = pinned ? 0 : veiled ? this.clock / VEIL : this.noise(done);
      if (!veiled || pinned) this.fill(figure, tile, pinned ? 0 : done);
    });
  }
  isPinned(name) { // a run of a visitor may have several
    return [this.scene.pinned].flat().includes(name);
  }
  noise(done) { // between two moments
    const place = done * (this.scene.noise.length - 1), k = Math.min(Math.floor(place), this.scene.noise.length - 2);
    return this.scene.noise[k] + (place - k) * (this.scene.noise[k + 1] - this.scene.noise[k]);
  }
  fill(figure, tile, done) {
    if (tile.texts) {
      const text = tile.texts[Math.round(done * (tile.texts.length - 1))], said = figure.querySelector('.said');
      if (said.textContent !== text) said.textContent = text;
      return;
    }
    const canvas = figure.querySelector('.drawn'), size = tile.size, count = tile.image.width / size;
    if (canvas.width !== 3 * size) canvas.width = canvas.height = 3 * size;
    const pen = canvas.getContext('2d'), place = done * (count - 1), k = Math.floor(place);
    pen.imageSmoothingQuality = 'high';
    [[k, 1], [Math.min(k + 1, count - 1), place - k]].forEach(([moment, share]) => {
      pen.globalAlpha = share;
      if (share) pen.drawImage(tile.image, moment * size, 0, size, size, 0, 0, 3 * size, 3 * size);
    });
  }
  go(going) {
    clearInterval(this.timer);
    this.going = going && !STILL.matches;
    let then = performance.now();
    if (this.going) this.timer = setInterval(() => {
      const now = performance.now();
      if (this.scene && !this.covered()) this.advance(Math.min(now - then, 4 * TICK)); // a page behind others stands still
      then = now;
    }, TICK);
  }
  covered() { // by present mode
    return Boolean(document.querySelector('.present')) && !this.node.closest('.present');
  }
  advance(ms) {
    const held = this.clock >= VEIL + FORM;
    this.clock += ms;
    if (!held) this.show();
    else if (this.clock >= VEIL + FORM + HOLD) {
      this.clock = VEIL + FORM; // until the next scene is there
      if (this.waits) return;
      this.waits = true;
      this.start(this.number + 1).catch(() => this.start(0)).finally(() => { this.waits = false; });
    }
  }
}
function sayings(node) { // what to say of a scene, from the words of the page
  const called = (name) => node.querySelector(`figure[data-name="${name}"] figcaption b`)?.textContent ?? name;
  return (scene) => scene.told ?? (scene.pinned
    ? [`${called(scene.pinned)} pinned`, 'the others form around it.']
    : ['Out of noise', 'all of them at once, in agreement.']);
}
function yourTurn() { // leads into the first tab and starts a run there
  const tab = [...document.querySelectorAll('.gradio-container [role=tab]')].find((one) => one.offsetParent);
  if (!tab) return void setTimeout(yourTurn, 300); // Gradio is still on its way
  tab.click();
  tab.focus({ preventScroll: true });
  document.getElementById('header').scrollIntoView({ behavior: STILL.matches ? 'auto' : 'smooth' });
  const task = tab.id.replace(/-tab-button$/, '');
  setTimeout(() => hasOwn(task) || document.getElementById(`${task}-begin`).click(), STILL.matches ? 0 : 700);
}
function hasOwn(task) { // a result, or live mode, or something that is still to be given
  const found = (rest) => document.querySelector(`#${task}-${rest}`);
  return found('player [data-run]:not([data-run="example"])') || found('live input:checked') || !found('plan .ready');
}
(() => {
  const opening = document.querySelector('.opening'), node = opening.querySelector('.constellation');
  opening.querySelector('.first')?.addEventListener('click', (event) => {
    event.preventDefault();
    yourTurn();
  });
  const { scenes, base } = node.dataset, kept = new Map(), say = sayings(node);
  const next = (number) => {
    const k = number % scenes;
    if (!kept.has(k)) kept.set(k, loaded(`${base}/${k}.json`).catch((error) => { kept.delete(k); throw error; }));
    return kept.get(k);
  };
  window.mmdiffScenes = { next };
  if (!opening.classList.contains('whole')) return; // for present mode only
  const told = opening.querySelector('.told'), button = told.querySelector('button');
  const tell = (scene) => {
    const [what, how] = say(scene);
    told.querySelector('b').textContent = `${what}: `;
    told.querySelector('span').textContent = how;
    told.querySelector('small').textContent = ` Recorded, seed ${scene.seed}.`;
  };
  const show = new Constellation(node, next, tell);
  let wanted = true, seen = true;
  const turn = () => {
    show.go(wanted && seen);
    button.setAttribute('aria-label', wanted ? 'Pause' : 'Play');
  };
  button.onclick = () => { wanted = !wanted; turn(); };
  new IntersectionObserver(([entry]) => {
    seen = entry.isIntersecting;
    document.documentElement.toggleAttribute('data-opening', seen);
    turn();
  }, { threshold: 0.15 }).observe(node);
  turn();
  show.start(0).catch(() => opening.classList.remove('whole'));
})();
