// Present mode, by its button or F: the recorded runs, the last runs of this browser, the newest first, then new ones of
// the server, each with the next seed.
(() => {
  const FIRST_SEED = 1000, IDLE = 2500, KEPT = 4; // ms; pairs of new scenes that are kept
  const opening = document.querySelector('.opening'), stage = opening.querySelector('.constellation');
  const { base } = stage.dataset, recorded = Number(stage.dataset.scenes), say = sayings(stage);
  const pairs = new Map();
  let own = [], overlay = null, shown = null, idle = null, before = null;

  function pair(number) { // out of noise, then with one thing pinned
    if (!pairs.has(number)) {
      const made = loaded(`${base}/new?seed=${FIRST_SEED + number}`);
      pairs.set(number, made);
      made.catch(() => pairs.delete(number));
      pairs.delete(number - KEPT);
    }
    return pairs.get(number);
  }
  function kept() { // by runs.js
    try { return JSON.parse(localStorage.getItem('mmdiff-runs')).filter((run) => run.scene); } catch { return []; }
  }
  async function next(number) {
    if (number < recorded) return window.mmdiffScenes.next(number);
    if (number < recorded + own.length) {
      const { scene, title, about, seed } = own[number - recorded];
      return prepared({ ...scene, seed, told: ['Your run', title || about] });
    }
    try {
      const place = number - recorded - own.length;
      return (await pair(Math.floor(place / 2)))[place % 2];
    } catch (error) { // the server is busy or gone: what was recorded once more
      if (!recorded) throw error;
      return window.mmdiffScenes.next(number % recorded);
    }
  }
  function icon(path) {
    return `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="${path}"/></svg>`;
  }
  function built() {
    const node = document.createElement('div'), tiles = stage.cloneNode(true);
    node.className = 'present';
    node.setAttribute('role', 'dialog');
    node.setAttribute('aria-modal', 'true');
    node.setAttribute('aria-label', 'Presentation');
    tiles.querySelectorAll('figure').forEach((figure) => figure.classList.remove('pinned'));
    tiles.querySelectorAll('.said').forEach((said) => { said.textContent = ''; });
    const caption = document.createElement('p'), nav = document.createElement('nav');
    caption.className = 'caption';
    caption.innerHTML = '<b></b><span></span><small></small>';
    nav.innerHTML = `<button type="button" data-go="-1" aria-label="Previous">${icon('m10 3-5 5 5 5')}</button>`
      + `<button type="button" data-go="1" aria-label="Next">${icon('m6 3 5 5-5 5')}</button>`
      + `<button type="button" data-go="0">Leave <kbd>Esc</kbd></button>`;
    node.append(tiles, caption, nav);
    return node;
  }
  function open() {
    before = document.activeElement;
    own = kept();
    overlay = built();
    document.body.append(overlay);
    const caption = overlay.querySelector('.caption');
    shown = new Constellation(overlay.querySelector('.constellation'), next, (scene) => {
      const [what, how] = say(scene);
      caption.querySelector('b').textContent = `${what}:`;
      caption.querySelector('span').textContent = how;
      caption.querySelector('small').textContent = `seed ${scene.seed}`;
    });
    overlay.onclick = (event) => {
      const by = event.target.closest('nav button')?.dataset.go;
      if (by) Number(by) ? go(Number(by)) : close();
    };
    overlay.onpointermove = awake;
    overlay.querySelector('[data-go="1"]').focus();
    awake();
    overlay.requestFullscreen?.().catch(() => {}); // where it is not allowed it fills the window
    shown.go(true);
    shown.start(0).catch(close);
  }
  function close() {
    if (!overlay) return;
    shown.go(false);
    overlay.remove();
    overlay = null;
    if (document.fullscreenElement) document.exitFullscreen();
    before?.focus({ preventScroll: true });
  }
  function go(by) {
    shown.start(Math.max(0, shown.number + by)).catch(() => {});
  }
  function awake() {
    clearTimeout(idle);
    overlay.classList.remove('idle');
    idle = setTimeout(() => overlay?.classList.add('idle'), IDLE);
  }
  const keys = { ArrowRight: () => go(1), ArrowLeft: () => go(-1), Escape: close, f: close, ' ': () => shown.go(!shown.going) };
  addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.length > 1 ? event.key : event.key.toLowerCase();
    if (overlay && key === 'Tab') { // focus stays inside
      const buttons = [...overlay.querySelectorAll('button')], k = buttons.indexOf(document.activeElement);
      event.preventDefault();
      buttons[(k + (event.shiftKey ? -1 : 1) + buttons.length) % buttons.length].focus();
      return awake();
    }
    const onButton = key === ' ' && event.target.closest?.('.present button');
    const writing = event.target.closest?.('input:not([type=range], [type=radio], [type=checkbox]), textarea, select, [contenteditable]');
    const action = overlay ? !onButton && keys[key] : key === 'f' && !writing && open;
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }, true);
  document.addEventListener('fullscreenchange', () => document.fullscreenElement || close());
  opening.querySelector('.present-button')?.addEventListener('click', open);
})();
